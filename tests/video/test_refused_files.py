"""What is no video, or refers to other files, is refused in a clear word; rare containers are not."""

from __future__ import annotations

import socket
from pathlib import Path

import av
import numpy as np
import pytest
from whole_reads import needs_decord, read

from zar_ray.errors import VideoError, VideoTooLargeError
from zar_ray.video import inspection, reading
from zar_ray.video.inspection import inspect_video
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.reading import probe_video


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_what_is_no_video_says_why(tmp_path, whole_file, write_video, decoder):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all\n")
    (tmp_path / "noise.avi").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "pointer.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    (tmp_path / "page.webm").write_text("<!DOCTYPE html><html><title>404</title></html>")
    data = whole_file.read_bytes()
    (tmp_path / "headless.mp4").write_bytes(data[-len(data) // 2 :])
    write_sound(tmp_path / "sound.wav")
    for name, reason in {
        "missing.mp4": "no such file",
        "empty.mp4": "empty file",
        ".": "is a folder, not a video",
        "text.mp4": "not a video, or a damaged one: moov atom not found",
        "headless.mp4": "not a video, or a damaged one: ",
        "noise.avi": "not a video, or a damaged one: Invalid data",
        "pointer.mp4": "not a video: is a Git LFS pointer",
        "page.webm": "not a video: is a web page",
        "sound.wav": "has no video stream",
    }.items():
        with pytest.raises(VideoError) as caught:
            probe_video(tmp_path / name, decoder)
        assert str(caught.value).startswith(reason)
        assert "\n" not in str(caught.value)
        assert caught.value.stage == "open"


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="1" bandwidth="1000" width="64" height="48"><BaseURL>{}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>\n"
)
SESSION = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
)


@pytest.mark.parametrize("decoder", ["auto", "pyav", pytest.param("decord", marks=needs_decord)])
@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.ts", "list.ffconcat", "list.mpd", "list"])
@pytest.mark.parametrize("form", [PLAYLIST, "ffconcat version 1.0\nfile '{}'\n", DASH])
def test_a_file_that_names_another_is_refused(tmp_path, samples, monkeypatch, decoder, name, form):
    """Else whoever may send a file could have any file of this machine read; whatever the file is called."""

    def unreachable(*_):
        raise AssertionError("decord gets only what PyAV has opened")

    monkeypatch.setattr(reading, "DecordReader", unreachable)
    for kind, suffix in (("transport stream", ".ts"), ("three frames", ".mp4")):
        beside = tmp_path / f"real{suffix}"
        beside.write_bytes(samples[kind].path.read_bytes())
        for reference in (beside.name, str(beside), beside.as_uri()):
            (tmp_path / name).write_text(form.format(reference))
            with pytest.raises(VideoError, match=r"^not a video") as caught:
                probe_video(tmp_path / name, decoder)
            assert "\n" not in str(caught.value)
            assert caught.value.stage == "open"


@pytest.mark.parametrize("form", [PLAYLIST, "ffconcat version 1.0\nfile '{}'\n", DASH])
def test_no_file_makes_this_machine_talk_to_another(tmp_path, form):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        port = server.getsockname()[1]
        for number, url in enumerate((f"http://127.0.0.1:{port}/a.ts", f"tcp://127.0.0.1:{port}")):
            path = tmp_path / f"{number}.mp4"
            path.write_text(form.format(url))
            with pytest.raises(VideoError, match=r"^not a video"):
                probe_video(path)
        (tmp_path / "session.sdp").write_text(SESSION.format(port))
        with pytest.raises(VideoError, match=r"^not a video"):
            probe_video(tmp_path / "session.sdp")
        with pytest.raises(TimeoutError):
            server.accept()


@needs_decord
def test_decord_does_not_get_what_it_may_take_for_a_playlist(tmp_path, samples, write_video, picture_of):
    """A playlist that is also the head of an unknown box, behind which a video follows: PyAV reads that video."""
    (tmp_path / "secret.ts").write_bytes(samples["transport stream"].path.read_bytes())
    fragmented = write_video(
        tmp_path / "fragmented.mp4",
        [picture_of(number) for number in range(5)],
        container={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    )
    head = PLAYLIST.format("secret.ts").encode()
    both = tmp_path / "both.mp4"
    with both.open("wb") as file:
        file.write(head)
        file.seek(int.from_bytes(head[:4], "big"))  # a hole: the file takes no room
        file.write(fragmented.read_bytes())
    frames, info, _ = read(both)
    assert (info.decoder, len(frames)) == ("pyav", 5)
    with pytest.raises(VideoError, match="PyAV reads them"):
        read(both, "decord")


def test_a_pattern_of_pictures_is_refused(tmp_path):
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (64, 48)).save(tmp_path / f"shot{number}.png")
    # a file of the pattern's own name is there, so that it does not fail for want of a file
    (tmp_path / "shot%d.png").write_bytes((tmp_path / "shot0.png").read_bytes())
    for name in ("shot%d.png", "shot0.png"):
        with pytest.raises(VideoError, match=r"^not a video: FFmpeg takes it for ") as caught:
            probe_video(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.wmv", "wmv2", "asf"),
        ("a.nut", "ffv1", "nut"),
        ("a.ivf", "libvpx", "ivf"),
        ("a.mxf", "mpeg2video", "mxf"),
        ("a.3gp", "mpeg4", "mov"),
        ("a.vob", "mpeg2video", "mpeg"),
        ("a.ogv", "libvpx", "ogg"),
        ("a.y4m", "rawvideo", "yuv4mpegpipe"),
        ("a.h264", "libx264", "h264"),
        ("a.hevc", "libx265", "hevc"),
        ("a.mjpeg", "mjpeg", "mjpeg"),
        ("a.apng", "apng", "apng"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_containers_stay_readable(tmp_path, write_video, picture_of, name, codec, container, named):
    """What is refused is what refers to other files, not what is rare; also in an upload, which has no suffix."""
    pixels = {"mjpeg": "yuvj420p", "apng": "rgb24"}.get(codec, "yuv420p")
    path = write_video(tmp_path / name, [picture_of(number) for number in range(12)], codec=codec, pixels=pixels)
    if not named:
        path = path.rename(tmp_path / "upload")
    assert inspect_video(path).container == container
    assert len(read(path)[0]) == 12


def write_sound(path: Path) -> None:

    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))


def test_pictures_that_are_too_large_are_not_decoded(tmp_path, write_video, picture_of, monkeypatch):
    """What the container says of their size is enough."""
    path = write_video(tmp_path / "wide.mp4", [picture_of(0, 48, 256)])
    monkeypatch.setattr(inspection, "packets", lambda *_: pytest.fail("a packet was read"))
    with pytest.raises(VideoTooLargeError, match="256×48 pixels; the limit is 255") as caught:
        inspect_video(path, limits=DecodeLimits(side=255))
    assert caught.value.stage == "open"
