import jax
import numpy as np
import pytest
import video_corpus
from PIL import Image

from vmae_jax.data.contact_sheet import GRID, Look, draw_contact_sheet
from vmae_jax.data.sources.folders import video_folder
from vmae_jax.errors import SettingError
from vmae_jax.masking import tube_mask


@pytest.fixture
def folder(tmp_path):
    """A video, and a bad one."""
    video_corpus.encode(str(tmp_path / "1.mp4"), frames=40, size=(64, 96))
    (tmp_path / "4.mp4").write_text("no video")
    return tmp_path


def all_of(folder):
    return video_folder(str(folder), "train", held_out_ratio=0)


def test_the_sheet_shows_what_the_mask_leaves_and_greys_the_rest(folder, tmp_path):
    source = all_of(folder)
    path = tmp_path / "sheet.png"
    hidden = np.asarray(tube_mask(jax.random.key(0), 1, (8, 14, 14), 0.9).to_bool())
    hidden = hidden.reshape(8, 14, 14)
    draw_contact_sheet(source, [0, 1], hidden, path, frame_stride=1, repeat=2, columns=4)
    sheet = np.asarray(Image.open(path)).astype(int)
    # one good record: 34 pixels of text, the frames (96 x 64 at 150 wide), the crops at 150 x 150
    assert sheet.shape == (34 + 100 + 150 + 12, 4 * 156 + 6, 3)
    look = Look(source, 1, 2)(0)
    hidden = hidden[0]
    shown = sheet[34 + 100 + 6 :, 6:156][:150]
    crop = np.asarray(Image.fromarray(look["crop"][0]).resize((150, 150))).astype(int)
    for row, column in np.ndindex(14, 14):
        middle = [slice(int((n + 0.4) * 150 / 14), int((n + 0.6) * 150 / 14) + 1)
                  for n in (row, column)]  # fmt: skip
        centre = tuple(middle)
        unchanged = np.abs(shown[centre] - crop[centre]).max() < 12
        grey = np.abs(shown[centre] - (crop[centre] * 0.3 + 110)).max() < 12
        assert grey if hidden[row, column] else unchanged


def test_a_sheet_of_nothing_is_refused(folder, tmp_path):
    with pytest.raises(SettingError, match="none of the records can be read"):
        draw_contact_sheet(all_of(folder), [1], np.zeros(GRID, bool), tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()
