"""Folders of videos and lists of them, to build TFDS sets of: what tests of those sets share."""

from __future__ import annotations

import socket

import pytest

from vmae_jax.data.tfds.building import build

NAMES = [f"clips of a/{i}.mp4" for i in range(10)]


def refuse_network(monkeypatch):
    """From now on nothing may look up a name or connect, to anything: an attempt fails its test."""

    def refuse(*args, **kwargs):
        pytest.fail(f"the network was asked for: {args[:2]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write(file, content):
    """The file, written with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def write_videos(folder, *names):
    """Files that no decoder reads, each with contents of its own, zero bytes at the end."""
    for name in names:
        write(folder / name, b"\x00\xff" + name.encode() + b"\x00\x00")


def write_listed(folder):
    """The folder, with ten videos and lists that name them and one more."""
    write_videos(folder / "videos", *NAMES)
    write(folder / "train.csv", "".join(f"{NAMES[i]} {i % 3}\n" for i in range(7)))
    write(folder / "val.txt", f"{NAMES[7]} 2\n{NAMES[8]} -1\ngone.mp4 1\n{NAMES[9]} 0\n")
    return folder


def build_listed(folder, dest="sets", **options):
    """What `build` gives for the videos of `write_listed`."""
    return build("video_folder", folder / "videos", folder / dest, annotations=folder, **options)


def write_ucf101(folder):
    """The folder, with lists as those of UCF101: two classes, three splits."""
    write(folder / "classInd.txt", "1 ApplyEyeMakeup\n2 Archery\r\n")
    for number in (1, 2, 3):
        train = f"Archery/v_Archery_g0{number}_c01.avi 2\nApplyEyeMakeup/v_x_g0{number}.avi 1\n"
        write(folder / f"trainlist0{number}.txt", train)
        write(folder / f"testlist0{number}.txt", f"Archery/v_Archery_g2{number}_c01.avi\n\n")
    return folder
