"""NumPy files, folders of images and IDX files, intact and damaged."""

import gzip
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from funcvae import data, random
from funcvae.data import readers
from funcvae.errors import BadData, BadType, BadValue, Missing
from tests.support.datasets import digits, idx, npy_of, refused, write_idx, write_image

# Folders of images


def test_flat_folder(tmp_path):
    for i in range(20):
        write_image(tmp_path / f"{i:02}.png", (4, 5), value=i)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    dataset = data.load(str(tmp_path))
    assert dataset.name == str(tmp_path)
    assert dataset.train.shape == (18, 1, 4, 5)
    assert dataset.test.shape == (2, 1, 4, 5)
    assert dataset.train_labels is None
    assert dataset.test_labels is None
    seen = torch.cat([dataset.train, dataset.test])[:, 0, 0, 0]
    assert sorted(seen.tolist()) == list(range(20))


def test_class_folders(tmp_path):
    for i in range(6):
        write_image(tmp_path / "cat" / f"{i}.png", (4, 4, 3), value=10)
        write_image(tmp_path / "ant" / f"{i}.png", (4, 4, 3), value=20)
    dataset = data.load(str(tmp_path))
    assert dataset.train.shape == (11, 3, 4, 4)
    for x, y in ((dataset.train, dataset.train_labels), (dataset.test, dataset.test_labels)):
        assert torch.equal(x[:, 0, 0, 0], torch.where(y == 0, 20, 10))  # ant is 0, cat 1: by name


def test_split_folders(tmp_path):
    for part, value in (("train", 1), ("test", 2)):
        for name in ("a", "b"):
            write_image(tmp_path / part / name / "0.png", (2, 2), value=value)
    dataset = data.load(str(tmp_path))
    assert torch.equal(dataset.train, torch.full((2, 1, 2, 2), 1, dtype=torch.uint8))
    assert torch.equal(dataset.test, torch.full((2, 1, 2, 2), 2, dtype=torch.uint8))
    assert dataset.train_labels.tolist() == dataset.test_labels.tolist() == [0, 1]


def test_split_folders_without_classes(tmp_path):
    for part in ("train", "test"):
        write_image(tmp_path / part / "0.png", (2, 2))
    dataset = data.load(str(tmp_path))
    assert dataset.train.shape == dataset.test.shape == (1, 1, 2, 2)
    assert dataset.train_labels is None


def test_split_folders_with_different_classes(tmp_path):
    write_image(tmp_path / "train" / "a" / "0.png", (2, 2))
    write_image(tmp_path / "train" / "b" / "0.png", (2, 2))
    write_image(tmp_path / "test" / "b" / "0.png", (2, 2))
    refused(BadData, tmp_path, tmp_path / "test", "class folders")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_channels(tmp_path, mode, channels):
    for i in range(2):
        write_image(tmp_path / f"{i}.png", (2, 2, 3), value=255, mode=mode)
    dataset = data.load(str(tmp_path))
    assert torch.equal(dataset.train, torch.full((1, channels, 2, 2), 255, dtype=torch.uint8))


def test_images_of_two_sizes(tmp_path):
    write_image(tmp_path / "0.png", (4, 4))
    write_image(tmp_path / "1.png", (4, 5))
    refused(
        BadData,
        tmp_path,
        tmp_path / "0.png",
        tmp_path / "1.png",
        "5×4 pixels",
        "4×4: to resize all images, set size, as in --size 64",
    )


def as_torchvision(folder, *transforms):
    """torchvision's own reading of class folders, uint8 [n, 3, H, W]."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, PILToTensor

    return torch.stack([x for x, _ in ImageFolder(folder, Compose([*transforms, PILToTensor()]))])


def in_order(dataset, images):
    """The items of a data set in the order of `images`, before a tenth was held out."""
    order = random.permutation(random.key(2**63), len(images))
    return torch.cat([dataset.test, dataset.train])[order.argsort()]


MODES = ("L", "RGB", "1", "LA", "RGBA", "P", "CMYK")


def write_noise(folder, sizes, modes=MODES):
    """Random images in a class folder, of these sizes and modes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, (mode, (width, height)) in enumerate(zip(modes, sizes, strict=False)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
        image.save(folder / (f"{i}.jpg" if mode == "CMYK" else f"{i}.png"))


def test_greys_among_colours_are_converted_as_by_torchvision(tmp_path):
    write_noise(tmp_path / "a", [(5, 4)] * len(MODES))
    want = as_torchvision(tmp_path)
    assert torch.equal(in_order(data.load(str(tmp_path)), want), want)


def test_a_grey_part_and_a_coloured_part_have_the_same_channels(tmp_path):
    write_noise(tmp_path / "train" / "a", [(5, 4)] * 2, ["L", "LA"])
    write_noise(tmp_path / "test" / "a", [(5, 4)] * 2, ["RGB", "L"])
    dataset = data.load(str(tmp_path))
    for part in ("train", "test"):
        assert torch.equal(getattr(dataset, part), as_torchvision(tmp_path / part))


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("modes", [MODES, ("L",) * 4])
def test_images_are_resized_as_by_torchvision(tmp_path, size, modes):
    from torchvision.transforms import CenterCrop, Resize

    write_noise(tmp_path / "a", [(5, 4), (9, 9), (4, 12), (30, 7), (3, 3), (6, 5), (8, 8)], modes)
    want = as_torchvision(tmp_path, Resize(size), CenterCrop(size))[:, : 3 if modes is MODES else 1]
    dataset = data.load(str(tmp_path), size=size)
    assert torch.equal(in_order(dataset, want), want)
    assert not torch.equal(want, as_torchvision(tmp_path, Resize((size, size)))[:, : want.shape[1]])


def test_train_and_test_images_of_different_sizes_are_one_error(tmp_path):
    for part, shape in (("train", (4, 4)), ("test", (4, 5))):
        write_image(tmp_path / part / "0.png", shape)
    refused(BadData, tmp_path, tmp_path / "test" / "0.png", "--size")
    assert data.load(str(tmp_path), size=2).test.shape == (1, 1, 2, 2)


def test_only_a_folder_of_images_has_a_size(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    write_idx(tmp_path / "MNIST" / "raw")
    for source in ("mnist", tmp_path / "x.npy", tmp_path / "MNIST"):
        refused(BadValue, source, "size is 8: only a folder of images can be resized", root=tmp_path, size=8)
    refused(BadValue, tmp_path, "size is 0: it must be at least 1", size=0)
    refused(BadType, tmp_path, "size is 2.5: it must be a whole number", size=2.5)


def test_many_resized_images_may_be_larger_than_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr("funcvae.data.readers.UNPACKED_LIMIT", 10)
    for i in range(3):
        write_image(tmp_path / f"{i}.png", (2, 2))
    assert data.load(str(tmp_path), size=200).train.shape == (2, 1, 200, 200)


def test_images_of_more_than_8_bits_are_an_error(tmp_path):
    Image.fromarray(np.full((4, 4), 300, dtype=np.uint16)).save(tmp_path / "0.png")
    refused(BadData, tmp_path, tmp_path / "0.png", "8-bit")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_corrupt_image(tmp_path, suffix):
    for i in range(2):
        write_image(tmp_path / f"{i}{suffix}", (20, 20, 3))
    path = tmp_path / f"1{suffix}"
    whole = path.read_bytes()
    for content in (b"", b"no image", whole[:4], whole[:20], whole[: len(whole) // 2], whole[:-25]):
        path.write_bytes(content)
        refused(BadData, tmp_path, path)


def test_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    refused(Missing, tmp_path, tmp_path, "no images")
    (tmp_path / "empty").mkdir()
    refused(Missing, tmp_path, tmp_path, "no images")


# NumPy files


def test_npy(tmp_path):
    path = tmp_path / "x.npy"
    x = np.arange(60, dtype=np.uint8).reshape(15, 2, 2)
    np.save(path, x)
    dataset = data.load(str(path))
    assert dataset.train.shape == (14, 2, 2)  # no channel axis is added
    assert dataset.test.shape == (1, 2, 2)
    assert sorted(torch.cat([dataset.train, dataset.test]).flatten().tolist()) == list(range(60))


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint16", "int64", "uint64", "float16", "float32", "float64", ">f4", ">i2"]
)
def test_dtypes_keep_their_values(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.ones((2, 3), dtype=dtype))
    dataset = data.load(str(tmp_path / "x.npy"))
    assert torch.equal(dataset.train, torch.ones(1, 3))
    assert dataset.train.dtype == torch.float32


def test_npz(tmp_path):
    path = tmp_path / "x.npz"
    arrays = {"train": np.random.default_rng(0).normal(size=(6, 3)), "test": np.ones((2, 3), np.float32)}
    labels = {"train_labels": np.arange(6, dtype=np.uint8), "test_labels": np.array([1, 0])}
    np.savez(path, **arrays, **labels, other=np.array(["ignored"]))
    dataset = data.load(str(path))
    assert torch.equal(dataset.train, torch.from_numpy(arrays["train"]).float())
    assert torch.equal(dataset.test, torch.ones(2, 3))
    assert dataset.train_labels.tolist() == list(range(6))
    assert dataset.test_labels.tolist() == [1, 0]
    assert dataset.train_labels.dtype == torch.int64
    np.savez_compressed(path, **arrays)
    dataset = data.load(str(path))
    assert dataset.test.shape == (2, 3)
    assert dataset.train_labels is None


def test_fortran_order(tmp_path):
    x = np.asfortranarray(np.arange(12.0).reshape(2, 3, 2))
    np.savez(tmp_path / "x.npz", train=x, test=x)
    dataset = data.load(str(tmp_path / "x.npz"))
    assert dataset.train.flatten().tolist() == list(range(12))
    assert dataset.train.is_contiguous()


GOOD = np.ones((4, 2), np.float32)


def bad(index, value, dtype=np.float32):
    array = np.ones((4, 2), dtype)
    array[index, 1] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "fragment"),
    [
        ({"test": GOOD}, "'train'"),
        ({"train": GOOD, "test": np.ones((4, 3))}, "[2] and [3]"),
        ({"train": GOOD, "test": np.ones(4)}, "[2] and []"),
        ({"train": np.float32(1)}, "train has shape []"),
        ({"train": np.ones((0, 2))}, "train has shape [0, 2]"),
        ({"train": np.ones((2, 0))}, "train has shape [2, 0]"),
        ({"train": GOOD, "test": np.ones((0, 2))}, "test has shape [0, 2]"),
        ({"train": GOOD[:1]}, "one item"),
        ({"train": bad(2, np.nan)}, "train item 2 "),
        ({"train": bad(0, np.inf)}, "train item 0 "),
        ({"train": GOOD, "test": bad(3, -np.inf)}, "test item 3 "),
        ({"train": bad(1, 1e300, np.float64)}, "train item 1 "),
        ({"train": np.array([1.0, 2.0, np.nan, np.nan])}, "train item 2 "),
        ({"train": GOOD.astype(np.complex64)}, "complex64"),
        ({"train": np.array(["a", "b"])}, "numbers"),
        ({"train": np.array([b"a", b"b"])}, "numbers"),
        ({"train": np.array([1, None])}, "numbers"),
        ({"train": np.zeros(2, "datetime64[s]")}, "numbers"),
        ({"train": np.zeros(2, [("x", "f4")])}, "numbers"),
        ({"train": GOOD, "train_labels": np.arange(3)}, "train_labels"),
        ({"train": GOOD, "train_labels": np.ones((4, 1), int)}, "train_labels"),
        ({"train": GOOD, "train_labels": np.ones(4)}, "train_labels"),
        ({"train": GOOD, "test": GOOD, "test_labels": np.arange(5)}, "test_labels"),
        ({"train": GOOD, "test_labels": np.arange(4)}, "test_labels, but no array 'test'"),
    ],
)
def test_bad_arrays(tmp_path, arrays, fragment):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    refused(BadData, path, path, fragment)


def test_pickled_arrays_are_not_opened(tmp_path):
    class Opened:
        def __reduce__(self):
            return pytest.fail, ("a pickle was opened",)

    path = tmp_path / "x.npy"
    np.save(path, np.array([Opened()], dtype=object), allow_pickle=True)
    refused(BadData, path, path, "numbers")
    path.write_bytes(pickle.dumps(Opened()))
    refused(BadData, path, path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_corrupt_numpy_file(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, np.ones((5, 5)))
    else:
        np.savez_compressed(buffer, train=np.random.default_rng(0).normal(size=(50, 5)))
    whole = buffer.getvalue()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        refused(BadData, path, path)
    path.write_bytes(b"1, 2, 3\n4, 5, 6\n")
    refused(BadData, path, path)


def test_npy_header_with_a_huge_count(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((5, 5)))
    path.write_bytes(path.read_bytes().replace(b"(5, 5), ", b"(9" + b"9" * 14 + b",),"))
    refused(BadData, path, path)


IMAGES, LABELS = digits(12)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        idx(IMAGES)[:4],
        idx(IMAGES)[:16],
        idx(IMAGES)[:-1],
        idx(IMAGES) + b"\0",
        b"GIF89a" + idx(IMAGES),
        struct.pack(">4i", 0x803, 2**31 - 1, 2**31 - 1, 2**31 - 1) + IMAGES.tobytes(),  # 8 GiB cubed
        struct.pack(">4I", 0x803, 2**32 - 1, 28, 28) + IMAGES.tobytes(),
        struct.pack(">4i", 0x803, 0, 28, 28),
        struct.pack(">4i", 0xD03, 3, 28, 28) + IMAGES.tobytes(),  # float32
        struct.pack(">4i", 0xA03, 12, 28, 28) + IMAGES.tobytes(),  # an unknown type
        idx(LABELS),
        idx(IMAGES.reshape(12, 784)),
    ],
)
def test_corrupt_idx(tmp_path, content):
    write_idx(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(content)
    refused(BadData, "mnist", path, root=tmp_path)


def test_corrupt_idx_labels(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    refused(BadData, "mnist", path, root=tmp_path)


def test_images_and_labels_of_different_counts(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:-2]))
    refused(BadData, "mnist", "mnist: train_labels", "[10]", "[12]", root=tmp_path)


@pytest.mark.parametrize("shape", ["(10000000000000, 2)", "(13, 2)"])
def test_an_npy_header_larger_than_the_file(tmp_path, shape):
    path = tmp_path / "x.npy"
    path.write_bytes(npy_of("(12, 2)"))
    assert len(data.load(str(path)).train) == 11
    path.write_bytes(npy_of(shape))
    with pytest.raises(BadData, match=r"x\.npy cannot be read.*its header claims .* items of 4 bytes, but"):
        data.load(str(path))


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with pytest.raises(BadData, match="cannot be read"):
        data.load(str(tmp_path / "x.npy"))


def test_an_archive_that_unpacks_to_many_times_its_size(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", train=np.zeros((1000, 300), np.uint8))
    assert len(data.load(str(tmp_path / "x.npz")).train) == 900
    monkeypatch.setattr("funcvae.data.readers.UNPACKED_LIMIT", 200_000)
    with pytest.raises(BadData, match=r"unpacked it takes 300,000 bytes, far more than on disk: save it with np"):
        data.load(str(tmp_path / "x.npz"))
    np.savez(tmp_path / "y.npz", train=np.zeros((1000, 300), np.uint8))  # the file is large, too
    data.load(str(tmp_path / "y.npz"))
    unused = np.zeros(10**6, np.uint8)  # unread arrays do not count
    np.savez_compressed(tmp_path / "z.npz", train=np.zeros((100, 10), np.uint8), unused=unused)
    data.load(str(tmp_path / "z.npz"))


@pytest.mark.parametrize("name", ["train", "train.npy"])  # np.load takes either
def test_every_member_that_is_read_is_checked(tmp_path, name):
    path = tmp_path / "x.npz"
    for shape, error in {"(12, 2)": None, "(10000000000000, 2)": BadData}.items():
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, npy_of(shape))
        if error:
            refused(error, path, "its header claims")
        else:
            assert len(data.load(str(path)).train) == 11


def test_images_that_unpack_to_many_times_their_size(tmp_path, monkeypatch):
    for i in range(4):
        Image.new("RGB", (400, 400)).save(tmp_path / f"{i}.png")
    assert len(data.load(str(tmp_path)).train) == 3
    monkeypatch.setattr("funcvae.data.readers.UNPACKED_LIMIT", 10**6)
    refused(BadData, tmp_path, "0.png", "all take 1,920,000 bytes, far more than on disk")
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for i in range(4):
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    data.load(str(tmp_path))


def test_an_image_file_runs_no_program(tmp_path, monkeypatch):
    """PIL reads the content, not the name, and starts Ghostscript for PostScript."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (tmp_path / "0.png").write_bytes(script)
    refused(BadData, tmp_path, "0.png")
    with Image.open(tmp_path / "0.png") as image, pytest.raises(pytest.fail.Exception, match="Ghostscript"):
        image.load()  # shows that this test can fail


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_one_bad_value_is_found(tmp_path, value):
    x = np.zeros((50, 3))
    x[17, 1] = value
    np.save(tmp_path / "x.npy", x)
    refused(BadData, tmp_path / "x.npy", "item 17 ")


def test_an_idx_file_that_is_too_long(tmp_path, monkeypatch):
    content = (2049).to_bytes(4, "big") + (100).to_bytes(4, "big") + bytes(100)
    (tmp_path / "labels").write_bytes(content)
    (tmp_path / "labels.gz").write_bytes(gzip.compress(content))
    for name in ("labels", "labels.gz"):
        assert len(readers.read_idx(tmp_path / name)) == 100
    monkeypatch.setattr("funcvae.data.readers.IDX_LIMIT", 107)
    for name in ("labels", "labels.gz"):
        with pytest.raises(BadData, match="it has more than 107 bytes"):
            readers.read_idx(tmp_path / name)


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    for i in range(2):
        Image.new("L", (40, 30)).save(tmp_path / f"{i}.png")
    assert data.load(str(tmp_path)).train.shape == (1, 1, 30, 40)
    monkeypatch.setattr("funcvae.data.readers.PIXEL_LIMIT", 1000)
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(BadData, match=r"0\.png cannot be read.*it has 1,200 pixels: at most 1,000 are allowed"):
        data.load(str(tmp_path))


def test_a_long_image_that_would_be_resized_to_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    for i in range(2):
        Image.new("L", (40, 1)).save(tmp_path / f"{i}.png")
    assert data.load(str(tmp_path), size=5).train.shape == (1, 1, 5, 5)
    monkeypatch.setattr("funcvae.data.readers.PIXEL_LIMIT", 999)
    with pytest.raises(BadData, match=r"0\.png cannot be read.*resized, it has more than 999 pixels: choose a smaller"):
        data.load(str(tmp_path), size=5)


def test_data_larger_than_the_memory_are_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"loading takes 4,096\.0 GiB, and this machine has"):
        readers._check_room(2**41)
    readers._check_room(2**20)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "folder/a.png"])
def test_pipes_are_not_read(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(BadData, match="is not a file"):
        data.load(str(path.parent if path.suffix == ".png" else path))
