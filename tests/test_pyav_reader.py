import av
import numpy as np
import pytest
from decoded import GOOD, orders, sequential
from video_corpus import FILES, FRAMES, made, painted_numbers

from vmae_jax.data.video.decoders import open_video


@pytest.mark.parametrize("name", GOOD)
def test_frames_are_those_of_a_sequential_decode_bit_for_bit(name):
    file, path = FILES[name], made(name)
    expected = sequential(path, file.rotation)
    painted = painted_numbers(np.rot90(expected, -file.rotation // 90, axes=(1, 2)))
    assert painted == [file.first_number + i for i in range(len(expected))]
    with open_video(path) as reader:
        assert (reader.num_frames, reader.height, reader.width) == expected.shape[:3]
        for indices in orders(len(expected)):
            frames = reader.read(indices)
            assert frames.dtype == np.uint8
            np.testing.assert_array_equal(frames, expected[list(indices)])


def test_vp8_packets_that_only_help_to_decode_are_no_frames(tmp_path):
    path = tmp_path / "hidden.webm"
    with av.open(str(made("vp8.webm"))) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                data = bytearray(packet)
                data[0] &= ~0x10 if number == 30 else 0xFF  # show_frame
                copy = av.Packet(bytes(data))
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                container.mux(copy)
    expected = sequential(path, 0)
    numbers = [number for number in range(FRAMES) if number != 30]
    assert painted_numbers(expected) == numbers
    reader = open_video(path)
    assert reader.num_frames == FRAMES - 1
    np.testing.assert_array_equal(reader.read([70, 30, 29]), expected[[70, 30, 29]])
