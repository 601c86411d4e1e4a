"""Clips in: colours, sizes, crops, rotation, transparency and HDR as a model sees them."""

from __future__ import annotations

from fractions import Fraction
from types import MappingProxyType

import av
import cv2
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from recordings import WHITE, numbered, numbers, write_video

from fym.video import read_clip, write_clip


class TestColours:
    """Patches written with tags come back as the colours that were meant."""

    PATCHES = np.array(
        [
            [255, 0, 0],
            [0, 255, 0],
            [0, 0, 255],
            [200, 180, 40],
            [255, 255, 255],
            [128, 128, 128],
            [16, 16, 16],
        ]
    )
    # Luma's shares of red and blue: ITU-R BT.601, BT.709 and BT.2020.
    SHARES = MappingProxyType({6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)})

    def write(self, path, colours, matrix=2, range_=0, transfer=2, primaries=2, bits=8, size=16, luma_of=6):
        """Lossless patches side by side, in YUV worked out here; 2 = not said, then `luma_of` it is."""
        red, blue = self.SHARES[luma_of if matrix == 2 else matrix]
        rgb = np.asarray(colours, float) / 255
        luma = rgb @ [red, 1 - red - blue, blue]
        chroma = [(rgb[:, 2] - luma) / (2 - 2 * blue), (rgb[:, 0] - luma) / (2 - 2 * red)]
        scale, top = 1 << (bits - 8), (1 << bits) - 1
        full = range_ == 2
        planes = [luma * (top if full else 219 * scale) + (0 if full else 16 * scale)]
        planes += [c * (top if full else 224 * scale) + 128 * scale for c in chroma]
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=24)
            stream.height, stream.width = size, size * len(rgb)
            stream.pix_fmt = "yuv444p" if bits == 8 else "yuv444p10le"
            context = stream.codec_context
            context.colorspace, context.color_range = matrix, range_
            context.color_trc, context.color_primaries = transfer, primaries
            for _ in range(2):
                frame = VideoFrame(stream.width, stream.height, stream.pix_fmt)
                frame.colorspace, frame.color_range = matrix, range_
                for plane, values in zip(frame.planes, planes, strict=True):
                    kind = np.uint8 if bits == 8 else np.uint16
                    row = np.zeros(plane.line_size // kind().nbytes, kind)
                    row[: stream.width] = np.repeat(values.round().clip(0, top), size)
                    plane.update(np.tile(row, (size, 1)).tobytes())
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    def read(self, path):
        clip = read_clip(path)
        size = clip.frames.shape[1]
        return clip.frames[0, size // 2, size // 2 :: size].numpy().astype(int), clip.notes

    @pytest.mark.parametrize("matrix", [2, 6, 1, 9])
    @pytest.mark.parametrize("range_", [0, 1, 2])
    @pytest.mark.parametrize("bits", [8, 10])
    def test_matrix_and_range(self, tmp_path, matrix, range_, bits):
        seen, notes = self.read(self.write(tmp_path / "c.mkv", self.PATCHES, matrix, range_, bits=bits))
        assert np.abs(seen - self.PATCHES).max() <= 3 and notes == ()

    def test_a_large_picture_without_tags_is_taken_for_bt709(self, tmp_path):
        """As players do; what we write large says what it is."""
        seen, _ = self.read(self.write(tmp_path / "untagged.mkv", self.PATCHES, size=160, luma_of=1))
        assert np.abs(seen - self.PATCHES).max() <= 3
        frames = np.tile(np.repeat(self.PATCHES, 160, 0).astype(np.uint8), (2, 160, 1, 1))
        write_clip(tmp_path / "pictures", torch.from_numpy(frames), 16)
        assert (read_clip(tmp_path / "pictures").frames.numpy() == frames).all()
        write_clip(tmp_path / "ours.mp4", torch.from_numpy(frames), 16)
        seen, _ = self.read(tmp_path / "ours.mp4")
        assert np.abs(seen - self.PATCHES).max() <= 4

    def test_hdr_is_tone_mapped(self, tmp_path):
        """Gray of 90 cd/m2 and less is shown as such on a screen whose white is 203, and above it all of
        them differ up to 1000 cd/m2, which is white; PQ and HLG agree."""
        nits = np.array([0.0, 1, 5, 20, 60, 85, 120, 203, 400, 1000])
        gray = {}
        for name, transfer, code in (("PQ", 16, pq_code(nits)), ("HLG", 18, hlg_code(nits))):
            colours = np.repeat(255 * code[:, None], 3, 1)
            path = self.write(tmp_path / f"{name}.mkv", colours, 9, 1, transfer, 9, bits=10)
            seen, notes = self.read(path)
            assert notes == (f"HDR ({name}) tone-mapped to SDR (BT.709)",)
            assert (seen == seen[:, :1]).all()
            small = read_clip(path, height=8).frames[0, 4, 4::8].numpy()
            assert np.abs(small - seen).max() <= 1  # it is shrunk before
            gray[name] = seen[:, 0]
            dark = nits < 90
            assert np.abs(gray[name][dark] - 255 * (nits[dark] / 203) ** (1 / 2.4)).max() <= 3
            assert (np.diff(gray[name]) > 4).all() and gray[name][-1] >= 253 and 220 < gray[name][7] < 240
        assert np.abs(gray["PQ"] - gray["HLG"]).max() <= 3

    @pytest.mark.parametrize("transfer", [16, 18, 1])
    def test_colours_in_bt2020_are_those_of_bt709(self, tmp_path, transfer):
        """The matrix between the two is worked out here, from the chromaticities of the primaries."""
        meant = self.PATCHES * (0.6 if transfer in (16, 18) else 1)  # below the tone curve
        light = (meant / 255) ** 2.4 @ np.linalg.solve(to_xyz(BT2020_XY), to_xyz(BT709_XY)).T
        if transfer == 18:
            luminance = light @ to_xyz(BT2020_XY)[1]
            scene = light * 0.203 * (luminance * 0.203)[:, None] ** (1 / 1.2 - 1)
            codes = hlg_oetf(scene)
        else:
            codes = pq_code(203 * light) if transfer == 16 else light ** (1 / 2.4)
        path = self.write(tmp_path / "w.mkv", 255 * codes, 9, 1, transfer, 9, bits=10)
        seen, notes = self.read(path)
        # One step of 10 bits is much where a channel that mixing leaves small has a steep curve.
        assert np.abs(seen - meant).max() <= 3 + 12 * (np.min(meant) < 1)
        assert np.abs(seen - meant).mean() < 3 and "to SDR (BT.709)" in notes[0]


BT709_XY = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
BT2020_XY = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))


def to_xyz(primaries):
    """(3,3) from linear R, G and B to CIE XYZ, white being D65."""

    def xyz(x, y):
        return np.array([x / y, 1, (1 - x - y) / y])

    columns = np.stack([xyz(*xy) for xy in primaries], 1)
    return columns * np.linalg.solve(columns, xyz(0.3127, 0.3290))


def pq_code(nits):
    """SMPTE ST 2084, from the standard's rounded constants."""
    power = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_code(nits):
    """ITU-R BT.2100 for gray on a screen of 1000 cd/m2: the inverse of gamma 1.2, then the OETF."""
    return hlg_oetf((nits / 1000) ** (1 / 1.2))


def hlg_oetf(scene):
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


class TestPictures:
    def test_odd_size_is_read_whole(self, tmp_path):
        path = write_video(tmp_path / "odd.mp4", numbered(6, 37, 51), pixels="yuv444p")
        assert read_clip(path).frames.shape == (6, 37, 51, 3)
        assert read_clip(path, height=32, width=32).frames.shape == (6, 32, 32, 3)

    def test_crop_is_to_the_centre(self, tmp_path):
        """A white square in the middle of a wide clip stays in the middle and keeps its proportions."""
        frames = np.zeros((3, 60, 120, 3), np.uint8)
        frames[:, 20:40, 50:70] = WHITE
        clip = read_clip(write_video(tmp_path / "c.mp4", frames), height=30, width=30)
        inside = clip.frames[0, :, :, 0] > 127
        rows, columns = np.nonzero(inside.numpy())
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 10, 19)
        assert "120x60 cropped and scaled to 30x30" in clip.notes

    def test_shrinking_averages(self, tmp_path):
        """A chessboard of single pixels becomes gray: area interpolation, no aliasing."""
        board = np.indices((64, 64)).sum(0) % 2 * 255
        frames = np.repeat(np.repeat(board[None, :, :, None], 3, 0), 3, 3).astype(np.uint8)
        (tmp_path / "board").mkdir()
        for index, picture in enumerate(frames):
            cv2.imwrite(str(tmp_path / "board" / f"{index}.png"), picture)
        clip = read_clip(tmp_path / "board", height=8, width=8)
        assert clip.frames.min() >= 127 and clip.frames.max() <= 128

    def test_one_side_keeps_the_proportions(self, clip_file):
        assert read_clip(clip_file, height=24).frames.shape[1:3] == (24, 32)
        assert read_clip(clip_file, width=32).frames.shape[1:3] == (24, 32)

    def test_gray_and_ten_bits(self, tmp_path):
        gray = numbered(4)[..., :1]
        for pixels in ("gray", "gray10le", "yuv420p10le"):
            path = write_video(tmp_path / f"{pixels}.mkv", gray, codec="ffv1", pixels=pixels)
            assert numbers(read_clip(path).frames) == [0, 1, 2, 3], pixels

    def test_transparency_becomes_white(self, tmp_path):
        rgba = np.concatenate([numbered(3), np.full((3, 48, 64, 1), 255, np.uint8)], -1)
        opaque = write_video(tmp_path / "opaque.mov", rgba, codec="png", pixels="rgba")
        assert read_clip(opaque).notes == ()
        rgba[:, :, 32:, 3] = 0
        clip = read_clip(write_video(tmp_path / "half.mov", rgba, codec="png", pixels="rgba"))
        assert (clip.frames[:, :, 32:] == WHITE).all() and numbers(clip.frames) == [0, 1, 2]
        assert clip.notes == ("transparent parts become white",)

    @pytest.mark.parametrize("rotation", [90, 180, -90])
    def test_rotation_mark_is_applied(self, tmp_path, rotation):
        """The same pictures as OpenCV's reader shows, which is another implementation of the mark."""
        frames = numbered(3)
        frames[:, :10] = 200  # tells up from down
        path = write_video(tmp_path / "r.mp4", frames, rotation=rotation)
        picture = read_clip(path).frames[0].numpy()
        _, other = cv2.VideoCapture(str(path)).read()
        assert picture.shape == other.shape
        assert np.abs(picture.astype(int) - other[:, :, ::-1].astype(int)).mean() < 2

    def test_crop(self, clip_file, tmp_path):
        whole = read_clip(clip_file)
        part = read_clip(clip_file, crop=(20, 8, 40, 30))
        assert torch.equal(part.frames, whole.frames[:, 8:38, 20:60]) and part.notes == whole.notes
        path = write_video(tmp_path / "r.mp4", numbered(3), rotation=90)  # 48 wide, 64 high when upright
        assert read_clip(path, crop=(0, 10, 48, 54)).frames.shape[1:3] == (54, 48)
        assert read_clip(path, crop=(0, 10, 48, 54), height=32, width=32).frames.shape[1:3] == (32, 32)

    def test_sound_is_ignored(self, tmp_path):
        path = tmp_path / "talk.mp4"
        with av.open(str(path), "w") as container:
            sound = container.add_stream("aac", rate=16000, layout="mono")
            stream = container.add_stream("libx264", rate=24, options={"crf": "5"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for picture in numbered(24):
                container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
            noise = np.random.default_rng(0).uniform(-1, 1, (1, 32000)).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            samples.sample_rate = 16000
            container.mux(sound.encode(samples))
            container.mux([*sound.encode(), *stream.encode()])
        assert numbers(read_clip(path).frames) == list(range(24))  # and not cut off: the sound is longer

    def test_pixels_that_are_not_square(self, tmp_path):
        path = write_video(tmp_path / "wide.mp4", numbered(3), aspect=Fraction(2, 1))
        assert read_clip(path).frames.shape[1:3] == (48, 128)
        assert read_clip(path, height=24, width=24).frames.shape[1:3] == (24, 24)
