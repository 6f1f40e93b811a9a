"""Data that are read batch by batch, against the same data in memory."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import funcvae as fv
from funcvae.errors import BadData, BadType, BadValue
from funcvae.train import streaming
from tests.support.training import begun, fit, same, small


class Rows:
    """A source, whose reads may fail or change."""

    def __init__(self, x, read=lambda x, rows, reads: x[rows]):
        self.x, self.read, self.reads = x, read, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        self.reads += 1
        return self.read(self.x, rows, self.reads)


class Hdf5(Rows):
    """Takes increasing, unique indices only, as h5py does."""

    def __getitem__(self, rows):
        assert isinstance(rows, np.ndarray)
        assert rows.dtype == np.int64
        if not (np.diff(rows) > 0).all():
            raise TypeError("Indexing elements must be in increasing order")
        return self.x[rows]


class Items(torch.utils.data.Dataset):
    """A map-style Dataset."""

    def __init__(self, x, item=lambda x: x):
        self.x, self.item = x, item

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        assert isinstance(i, int)
        return self.item(self.x[i])


class Fetched(Items):
    def __getitems__(self, rows):
        return [self.x[i] for i in rows]


def mapped_file(tmp_path, x):
    path = tmp_path / f"{len(x)}.npy"
    np.save(path, x.numpy())
    return np.load(path, mmap_mode="r")


SOURCES = {
    "memory-mapped": mapped_file,
    "a part of a mapped file": lambda tmp_path, x: mapped_file(tmp_path, torch.cat([x[:7] + 1, x]))[7:],
    "hdf5": lambda tmp_path, x: Hdf5(x.numpy()),
    "float64": lambda tmp_path, x: Rows(x.double().numpy()),
    "big-endian": lambda tmp_path, x: Rows(x.numpy().astype(">f4")),
    "dataset of tensors": lambda tmp_path, x: Items(x),
    "dataset of arrays": lambda tmp_path, x: Items(x.numpy()),
    "dataset with __getitems__": lambda tmp_path, x: Fetched(x),
    "dataset of tuples": lambda tmp_path, x: fv.train.mapped(TensorDataset(x, x), lambda item: item[0]),
}


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("funcvae-reader")]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_trains_like_the_same_data_in_memory(tmp_path, points, source):
    x = SOURCES[source](tmp_path, points)
    logged, read = [], []
    ts, history = fit(points, test=points[:20], log=logged.append)
    streamed, again = fit(x, test=SOURCES[source](tmp_path, points[:20]), log=read.append)
    assert same(ts, streamed)
    assert logged == read
    for one, two in zip(history, again, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 5, "chunk": 2},
        {"shards": 3},
        {"samples": 4, "shards": 2, "split": fv.distributed.by_samples},
        {"samples": 2, "observe": lambda key, x: x + 0.1 * fv.random.normal(key, x.shape)},
    ],
    ids=["chunk", "by rows", "by samples", "observe"],
)
def test_a_step_in_parts_is_the_same(points, options):
    ts, history = fit(points, **options)
    streamed, again = fit(Hdf5(points.numpy()), **options)
    assert same(ts, streamed)
    np.testing.assert_array_equal(history.loss, again.loss)


def test_bytes_and_a_compiled_step(points, monkeypatch):
    monkeypatch.setattr(fv.compilation, "compiled", lambda f, device="cpu": torch.compile(f, backend="eager"))
    x = (points[:32].sigmoid() * 255).to(torch.uint8)
    options = {"observe": fv.model.as_floats, "compile": True, "epochs": 1}
    (ts, _), (streamed, _) = fit(x, **options), fit(Rows(x.numpy()), **options)
    assert same(ts, streamed)


def both(item):
    return torch.cat([item["x"], item["y"][:, None].float()], 1)


def data_of_pairs(points):
    model = fv.vae(
        encoder=lambda: Pairs(), decoder=lambda: torch.nn.Linear(2, 2), latent=2, modelled=lambda d: d["x"],
        likelihood=fv.heads.normal_fixed(1.0),
    )  # fmt: skip
    return model, {"x": points, "y": torch.arange(50) % 3}


class Pairs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, data):
        return self.layer(both(data)).chunk(2, -1)


def test_a_dict_of_sources_and_a_source_of_dicts(points):
    model, data = data_of_pairs(points)
    ts, history = fit(data, model=model, test=data)
    x, y = points.numpy(), data["y"].numpy().astype(np.int16)
    sources = {
        "a dict of sources": {"x": Hdf5(x), "y": Items(y)},
        "with a tensor": {"x": Rows(x), "y": data["y"]},
        "a source of dicts": Rows(x, lambda x, rows, _: {"x": x[rows], "y": y[rows]}),
        "a Dataset of dicts": fv.train.mapped(TensorDataset(points, data["y"]), lambda i: {"x": i[0], "y": int(i[1])}),
    }
    for name, source in sources.items():
        streamed, again = fit(source, model=model, test=source)
        assert same(ts, streamed), name
        np.testing.assert_array_equal(history.test_bound, again.test_bound)


def test_a_stopped_run_continues_within_an_epoch(points):
    model, opt, elbo = small(), fv.optim.adam(), fv.estimators.elbo()
    start = fv.train.init(model, opt, fv.random.key(0))
    options = {"epochs": 1, "batch": 16, "compile": False}
    whole, _ = fv.train.fit(start, model, elbo, opt, points, **{**options, "epochs": 2})
    saved = []
    source = Hdf5(points.numpy())
    fv.train.fit(start, model, elbo, opt, source, **options, save=saved.append, stop=lambda: True)
    half, _ = fv.train.fit(saved[-1], model, elbo, opt, source, **options)
    rest, _ = fv.train.fit(half, model, elbo, opt, source, **options)
    assert (int(saved[-1].step), int(half.step)) == (1, 4)
    assert same(whole, rest)


def test_replay_and_the_test_bound(points):
    run, key = begun(), fv.random.key(3)
    source = Hdf5(points.numpy())
    one, two = (fv.train.replay(run[0], 6, *run[1:], x, batch=16, samples=3, compile=False) for x in (points, source))
    assert same(one, two)
    ts, model, estimator, _ = run
    assert fv.train.test_bound(model, estimator, ts, points, key, batch=7) == fv.train.test_bound(
        model, estimator, ts, source, key, batch=7
    )


def test_batches_are_read_ahead_but_none_beyond_the_end(points):
    source, read = Rows(points.numpy()), []
    fit(source, watch=lambda step, ts: read.append(source.reads), epochs=1)
    first, batches = 1, 4
    assert read[0] >= first + 1
    assert source.reads == first + batches


def test_gather_returns_the_rows_in_their_order(points):
    stream = streaming.opened("x", Hdf5(points.numpy()))
    rows = fv.random.permutation(fv.random.key(1), 50)
    assert torch.equal(stream.gather(rows), points[rows])
    assert torch.equal(torch.cat(list(streaming.blocks(stream, 7))), points)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [("uint8", "uint8"), ("bool", "bool"), ("int16", "int64"), ("uint32", "int64"), ("float16", "float32"),
     ("float64", "float32")],
)  # fmt: skip
def test_dtypes(values, dtype):
    stream = streaming.opened("x", np.ones((4, 2), values))
    assert stream.first.dtype == getattr(torch, dtype)


def failing(at, error):
    """Reads that fail, or return something else, from the read of this number on."""

    def read(x, rows, reads):
        if reads < at:
            return x[rows]
        if isinstance(error, Exception):
            raise error
        return error(x[rows])

    return read


FAILURES = {
    "an error": (OSError("disk\ngone"), r"train: items 0 to 48 cannot be read: OSError: disk gone \(step 5\)"),
    "another shape": (lambda x: x[:, :1], r"train: items 0 to 48 are a torch.float32 tensor \[16, 1\]: they must be"),
    "fewer items": (lambda x: x[1:], r"they must be torch.float32 \[16, 2\] \(step 5\)"),
    "another dtype": (lambda x: x.astype(np.uint8), r"are a torch.uint8 tensor .* must be torch.float32"),
    "another layout": (lambda x: torch.tensor(x).to_sparse(), r"train is a tensor of layout torch.sparse_coo: it must"),
    "a dict": (lambda x: {"x": x}, r"have the parts \['x'\]: the first items have \[''\]"),
    "complex": (lambda x: x * 1j, r"the items are torch.complex64: they must be real numbers"),
    "objects": (lambda x: x.astype(object), r"cannot be read: TypeError"),
    "not finite": (
        lambda x: np.where(np.arange(16) == 4, np.nan, x.T).T,
        r"train: item \d+ is NaN or infinite: .* \(step 5\)",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_source_that_fails_in_the_middle(points, failure):
    error, message = FAILURES[failure]
    rows, saved = [], []
    with pytest.raises(BadData, match=message) as raised:
        fit(Rows(points.numpy(), failing(7, error)), log=rows.append, save=saved.append)
    assert "\n" not in str(raised.value)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 4]  # and the end of an epoch, after four steps
    assert not saved


def test_a_part_that_becomes_a_dict(points):
    model, data = data_of_pairs(points)
    source = {"x": Rows(points.numpy(), failing(4, lambda x: {"x": x})), "y": data["y"]}
    with pytest.raises(BadData, match=r"train\['x'\] is of type dict: it must be a tensor \(step 2\)"):
        fit(source, model=model)


def test_a_value_that_is_not_finite_is_named_by_its_row(points):
    x = points.numpy().copy()
    x[41, 1] = np.inf
    with pytest.raises(BadData, match=r"train: item 41 is NaN or infinite: all numbers must be finite in float32 \("):
        fit(Rows(x))
    with pytest.raises(BadData, match=r"test: item 41 is NaN or infinite: all numbers must be finite in float32$"):
        fit(points, test=Rows(x))
    with pytest.raises(BadData, match="train: item 3 is NaN"):
        fit(Rows(np.full((9, 2), 1e39) * (np.arange(9) == 3)[:, None]))  # float64, beyond float32


def test_a_source_that_changes_its_length(points):
    class Growing(Rows):
        def __len__(self):
            return 50 + (self.reads > 3)

    with pytest.raises(BadData, match=r"train has 51 items: it had 50 when training began \(step \d\)"):
        fit(Growing(points.numpy()))


def test_a_mapped_file_that_becomes_shorter(tmp_path, points):
    x = mapped_file(tmp_path, points)
    path = tmp_path / "50.npy"
    path.write_bytes(path.read_bytes()[:300])  # a page that is not in the file would kill the process
    with pytest.raises(BadData, match=r"50.npy has become shorter"):
        fit(x)


def test_a_mapped_file_that_is_replaced_or_deleted(tmp_path, points):
    x = mapped_file(tmp_path, points)
    (tmp_path / "50.npy").unlink()
    with pytest.raises(BadData, match="train: items 0 to 31 cannot be read: FileNotFoundError"):
        fit(x)
    np.save(tmp_path / "50.npy", np.zeros((99, 2)))
    with pytest.raises(BadData, match=r"50.npy is another file now"):
        fit(x)


def test_an_interrupt_ends_the_thread(points):
    def interrupt(step, ts):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Rows(points.numpy()), watch=interrupt)


def test_the_process_does_not_keep_pages_of_a_mapped_file(tmp_path):
    x = torch.zeros(2**18, 16)  # 16 MiB
    source = mapped_file(tmp_path, x)

    def resident():
        status = Path("/proc/self/status").read_text().split()
        return int(status[status.index("RssFile:") + 1])

    before = resident()
    for _ in streaming.blocks(streaming.opened("x", source), 2**12):
        assert resident() - before < 4 * 2**10
    source.sum()
    assert resident() - before > 12 * 2**10  # the check finds pages that are kept


def test_what_cannot_be_a_source(points):
    loader = DataLoader(TensorDataset(points), batch_size=20)
    with pytest.raises(BadType, match=r"(?s)train is a DataLoader.*loader.dataset.*observe = .*batch=20") as raised:
        fit(loader)
    assert len(str(raised.value).splitlines()) == 4
    with pytest.raises(BadType, match=r"train is of type generator, which can only be read in its own order"):
        fit(row for row in points)
    with pytest.raises(BadType, match="test is of type Endless, which can only"):
        fit(points, test=Endless())
    with pytest.raises(BadType, match=r"an item of the Dataset is a tuple: .* train.mapped\(dataset, lambda item"):
        fit(TensorDataset(points))
    with pytest.raises(BadValue, match=r"the parts of train differ in length: 'x' has 50, 'y' has 49"):
        fit({"x": points.numpy(), "y": np.zeros(49)})
    with pytest.raises(BadData, match="train is empty"):
        fit(np.zeros((0, 2)))
    for wrong in ("abc", b"abc", [1], (points,), {"x": [1]}, {"x": "a"}, np.float32(1), np.array(1.0), Rows, None):
        with pytest.raises(BadType, match=r"train.* is .*: it must be a tensor"):
            fit(wrong)


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_a_streamed_fit_on_cuda_equals_that_in_memory(points, compile):
    model, opt = small(), fv.optim.adam(1e-2)
    ts = fv.train.init(model, opt, fv.random.key(0, device="cuda"))
    found = [
        fv.train.fit(ts, model, fv.estimators.elbo(), opt, x, test=x, epochs=2, batch=16, compile=compile)
        for x in (points, Hdf5(points.numpy()))
    ]
    (memory, history), (streamed, again) = found
    assert streamed.step.is_cuda
    assert same(memory, streamed)
    np.testing.assert_array_equal(history.loss, again.loss)
    np.testing.assert_array_equal(history.test_bound, again.test_bound)
