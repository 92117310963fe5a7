from pathlib import Path

import cv2
import numpy as np
import pytest

from fedgh_app.errors import UserError
from fedgh_app.pose.prediction import videos


def write_video(path: Path, frames: int = 20, rate: float = 12.5, size: tuple[int, int] = (64, 48)) -> Path:
    """The right half of frame n has the red value 10 n, within a few; the left half is noise, as in a real one."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, size)
    random = np.random.default_rng(0)
    for number in range(frames):
        frame = np.full((size[1], size[0], 3), (0, 0, 10 * number), np.uint8)
        frame[:, : size[0] // 2] = random.integers(0, 255, (size[1], size[0] // 2, 1))
        writer.write(frame)
    writer.release()
    return path


def test_frames_come_in_order_as_rgb(tmp_path: Path) -> None:
    video = videos.open_video(write_video(tmp_path / "a.avi"))
    assert (video.frames, video.rate, video.size) == (20, 12.5, (64, 48))
    frames = list(videos.frames_of(video))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 20
    assert np.allclose([frame[:, 40:, 0].mean() for frame in frames], 10 * np.arange(20), atol=6)
    assert max(frame[:, 40:, 1:].max() for frame in frames) < 12


@pytest.mark.parametrize("rate", [12.5, 25.0, 29.97, 240.0])
def test_what_is_written_has_every_frame_at_the_same_rate(tmp_path: Path, rate: float) -> None:
    with videos.writing(tmp_path / "a.mp4", rate) as write:
        for number in range(5):
            write(np.full((33, 41, 3), 40 * number, np.uint8))  # odd sides
    found = videos.open_video(tmp_path / "a.mp4")
    assert found.frames == 5 and found.rate == pytest.approx(rate, abs=1e-3)
    assert np.allclose([frame.mean() for frame in videos.frames_of(found)], 40 * np.arange(5), atol=6)


@pytest.mark.parametrize("kept", [0.8, 0.5])
def test_a_video_that_breaks_off_is_told_with_the_frame(tmp_path: Path, kept: float) -> None:
    whole = write_video(tmp_path / "a.avi").read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: int(kept * len(whole))])
    given = []
    with pytest.raises(UserError, match=r"cut\.avi: video breaks off at frame \d+ of 20") as error:
        given += list(videos.frames_of(videos.open_video(cut)))
    broke = int(str(error.value).split()[-3])
    assert 0.5 * kept * 20 < broke < 18


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 5000])
def test_what_is_no_video_is_one_line(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mp4: not a video that OpenCV can open"):
        videos.open_video(tmp_path / "a.mp4")
    assert capfd.readouterr().err == ""  # FFmpeg's own words would stand beside our line
    with pytest.raises(UserError, match="missing"):
        videos.open_video(tmp_path / "b.mp4")


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    with videos.writing(tmp_path / "a.mp4", 25) as write:
        for _ in range(5):
            write(np.zeros((32, 32, 3), np.uint8))
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[:-200])
    with pytest.raises(UserError, match=r"a\.mp4: not a video that OpenCV can open; is it cut off"):
        videos.open_video(tmp_path / "a.mp4")


def test_frames_of_another_size_and_files_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="frame 1 is 30x20, expected 40x20"),
        videos.writing(tmp_path / "a.mp4", 25) as w,
    ):
        w(np.zeros((20, 40, 3), np.uint8))
        w(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(OSError, match="cannot write"), videos.writing(tmp_path / "none" / "a.mp4", 25) as w:
        w(np.zeros((20, 40, 3), np.uint8))
