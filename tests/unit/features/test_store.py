import json
import logging
import shutil

import pytest
import torch
import torch.nn.functional as F

from simzss.data.shards import read_shards
from simzss.features import store as module
from simzss.features.placement import Memory
from simzss.features.store import FeatureStore, share
from simzss.models.feature_norm import FeatureNorm
from simzss.models.features import ImageFeatures
from tests.support.caching import copied, jpeg_shards, make_cache, stored_tensors
from tests.support.files import contents
from tests.support.models import make_backbone, refused

CPU = torch.device("cpu")
STORAGES = ("bfloat16", "int8", "float32")
VIEWS = 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return jpeg_shards(tmp_path_factory.mktemp("shards"), broken=(11,))


@pytest.fixture(scope="module")
def caches(shards, tmp_path_factory):
    """A cache of each storage, of files of a few images."""
    folders = {}
    for storage in STORAGES:
        folders[storage] = tmp_path_factory.mktemp("caches") / storage
        make_cache(shards, folders[storage], storage=storage, views=VIEWS, min_crop=0.4, file_mb=0.018)
    return folders


@pytest.fixture(params=STORAGES)
def folder(caches, request):
    return caches[request.param]


@pytest.fixture
def own(caches, tmp_path):
    """A folder to spoil."""
    return copied(caches["bfloat16"], tmp_path)


def every_picture(store):
    rows = torch.arange(len(store)).repeat_interleave(store.views)
    return rows, torch.arange(store.views).repeat(len(store))


def equal(one, other):
    pairs = zip((one.cls, one.patches, one.scale), (other.cls, other.patches, other.scale), strict=True)
    return all((a is None and b is None) or (a.dtype == b.dtype and a.equal(b)) for a, b in pairs)


def test_what_it_says(folder, shards):
    store = FeatureStore.open(folder)
    assert (len(store), store.total_images, store.views) == (17, 17, VIEWS)
    assert (store.metadata.grid, store.metadata.width) == ((4, 4), 64)
    assert store.captions == [sample.captions for sample in read_shards(shards) if sample.key != f"{11:09d}"]
    assert [(entry.key, entry.shard) for entry in store.skipped] == [(f"{11:09d}", "shard-000001.tar")]
    assert store.nbytes == sum(
        tensor.nbytes for tensors in stored_tensors(folder).values() for tensor in tensors.values()
    )
    assert not store.normalised and not store.on_accelerator
    assert store.metadata.storage == folder.name


@pytest.mark.parametrize("placement", ["device", "host", "mapped", "auto"])
def test_rows_are_those_of_the_files(folder, placement):
    store = FeatureStore.open(folder)
    assert store.place(CPU, placement) == {"mapped": "mapped"}.get(placement, "host") == store.placement
    expected = list(stored_tensors(folder).values())
    rows, views = torch.tensor([16, 0, 3, 3, 9, 0, 12]), torch.tensor([0, 1, 1, 0, 1, 1, 0])
    found = store.rows(rows, views)
    assert len(found) == 7 and found.grid == (4, 4)
    for i, (row, view) in enumerate(zip(rows.tolist(), views.tolist(), strict=True)):
        assert found.cls[i].equal(expected[row]["cls"][view])
        assert found.patches[i].equal(expected[row]["patches"][view])
        assert found.scale is None or found.scale[i].equal(expected[row]["scale"][view])
    assert (found.scale is not None) == (folder.name == "int8")
    assert len(store.rows(rows[:0], views[:0])) == 0


def test_before_it_is_placed_it_is_mapped(folder):
    store, placed = FeatureStore.open(folder), FeatureStore.open(folder)
    placed.place(CPU, "host")
    assert equal(store.rows(*every_picture(store)), placed.rows(*every_picture(placed)))


def test_stored_features(folder):
    store = FeatureStore.open(folder)
    kept = store.rows(*every_picture(store))
    parts = kept.split(5)
    assert [len(part) for part in parts] == [5] * 6 + [4]
    assert torch.cat([part.patches for part in parts]).equal(kept.patches)
    assert equal(kept.to(CPU), kept)
    own = kept.features()
    assert own.patches.dtype == own.cls.dtype == (torch.bfloat16 if folder.name == "bfloat16" else torch.float32)
    wide = kept.features(torch.float64)
    assert wide.patches.dtype == wide.cls.dtype == torch.float64
    scale = torch.ones(1) if kept.scale is None else kept.scale
    torch.testing.assert_close(wide.patches, kept.patches.double() * scale.double()[..., None], rtol=1e-6, atol=0)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_partition_the_images(folder, world):
    shares = [FeatureStore.open(folder, rank, world) for rank in range(world)]
    joint = [group for store in shares for group in store.captions]
    assert sorted(joint, key=str) == sorted(FeatureStore.open(folder).captions, key=str) and len(joint) == 17
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    expected = stored_tensors(folder)
    for store in shares:
        assert store.total_images == 17 and store.skipped == shares[0].skipped
        for place in ("mapped", "host"):
            store.place(CPU, place)
            kept = store.rows(*every_picture(store))
            for row, group in enumerate(store.captions):
                key = f"{int(group[0].text.split()[-1]):09d}"
                assert kept.patches[VIEWS * row : VIEWS * (row + 1)].equal(expected[key]["patches"])


@pytest.mark.parametrize(
    ("images", "world"), [([4, 4, 2, 3, 4, 1], 2), ([1, 1, 1], 3), ([9, 1, 1], 4), ([680] * 100 + [3], 8), ([2], 2)]
)
def test_share(images, world):
    rows = [(file, row) for file, count in enumerate(images) for row in range(count)]
    shares = [
        [(file, row) for file, part in share(images, rank, world) for row in range(part.start, part.stop)]
        for rank in range(world)
    ]
    assert [place for part in shares for place in part] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_images(folder):
    assert len(FeatureStore.open(folder, 16, 17)) == 1
    refused(lambda: FeatureStore.open(folder, 0, 18), "17 images", "18 processes")


def change_index(folder, **changes):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | changes))


def other_format(folder):
    facts = json.loads((folder / "index.json").read_text())["facts"]
    change_index(folder, facts=facts | {"version": 9})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: shutil.rmtree(folder), "is no folder: make it with simzss cache"),
        (lambda folder: [shutil.rmtree(folder), folder.mkdir()], "holds no index.json: make it with simzss cache"),
        (lambda folder: change_index(folder, complete=False), "not complete: run simzss cache again"),
        (lambda folder: (folder / "index.json").write_text("{"), "not complete: run simzss cache again"),
        (lambda folder: (folder / "index.json").unlink(), "not complete: run simzss cache again"),
        (lambda folder: (folder / "index.json").write_text("{}"), "index.json is broken: run simzss cache again"),
        (other_format, "of format 9, this program reads 1"),
    ],
)
def test_what_is_no_complete_cache_is_refused(own, damage, says):
    damage(own)
    refused(lambda: FeatureStore.open(own), f"features {own}", says)


def test_missing_and_cut_files_are_named(own):
    paths = sorted(own.glob("*.safetensors"))
    paths[0].unlink()
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    refused(lambda: FeatureStore.open(own), f": {paths[0].name}, {paths[2].name};", "run simzss cache again")
    for path in paths[1:]:
        path.write_bytes(b"")
    refused(lambda: FeatureStore.open(own), paths[0].name, f"and {len(paths) - 3} more")


@pytest.mark.parametrize("placement", ["host", "mapped"])
def test_a_corrupted_byte_is_found(own, placement):
    path = sorted(own.glob("*.safetensors"))[1]
    data = bytearray(path.read_bytes())
    data[1200] ^= 4
    path.write_bytes(data)
    store = FeatureStore.open(own)
    message = refused(
        lambda: store.place(CPU, placement), f"{path} is corrupted", "remove it and run simzss cache again"
    )
    assert str(sorted(own.glob("*.safetensors"))[0]) not in message
    assert store.place(CPU, placement, verify=False) == placement


@pytest.mark.parametrize("damage", ["header", "file of another cache"])
def test_a_file_that_is_not_that_of_the_index_is_found(own, caches, damage):
    """It may even have the right size."""
    path = sorted(own.glob("*.safetensors"))[0]
    data = b"\xff" * 9 + path.read_bytes()[9:] if damage == "header" else (caches["float32"] / path.name).read_bytes()
    path.write_bytes(data)
    files = json.loads((own / "index.json").read_text())["files"]
    change_index(own, files=[files[0] | {"bytes": len(data)}, *files[1:]])
    refused(lambda: FeatureStore.open(own), str(path), "remove it and run simzss cache again")


def test_check_backbone(folder):
    store = FeatureStore.open(folder)
    store.check_backbone(make_backbone())
    other = make_backbone(image_size=96)
    other.fingerprint = "0123"
    refused(
        lambda: store.check_backbone(other),
        f"features {folder} are not those of backbone tiny",
        "backbone.image_size was 64 and is 96",
        f"backbone.weights was {make_backbone().fingerprint} and is 0123",
        "simzss cache",
    )


def reference(norm, kept):
    """Unit vectors in float64, centred."""
    raw = kept.features(torch.float64)
    cls, patches = raw.cls - norm.cls_mean.double(), raw.patches - norm.patch_mean.double()
    return F.normalize(cls, dim=-1), F.normalize(patches, dim=-1)


@pytest.mark.parametrize("block", [64, 5])
def test_normalise(folder, block):
    store = FeatureStore.open(folder)
    store.place(CPU, "host")
    raw = store.rows(*every_picture(store))
    norm = FeatureNorm("center", 64)
    norm.fit([ImageFeatures(raw.cls.float(), raw.features(torch.float32).patches, (4, 4))])
    expected_cls, expected = reference(norm, raw)
    store.normalise(norm, block)
    found = store.rows(*every_picture(store))
    assert store.normalised and found.patches.dtype == raw.patches.dtype
    bound = {"bfloat16": 2**-8, "float32": 1e-5}.get(folder.name)
    if bound is None:
        largest = expected.abs().amax(dim=-1, keepdim=True)
        assert ((found.features(torch.float64).patches - expected).abs() <= largest / 254 * 1.001 + 1e-6).all()
    else:
        assert ((found.patches.double() - expected).abs() <= bound * expected.abs() + 1e-6).all()
    assert ((found.cls.double() - expected_cls).abs() <= 2**-8 * expected_cls.abs() + 1e-5).all()
    store.place(CPU, "host")
    assert not store.normalised and equal(store.rows(*every_picture(store)), raw)


def test_normalise_leaves_the_files(folder):
    before = contents(folder)
    store = FeatureStore.open(folder)
    for placement in ("mapped", "host"):
        store.place(CPU, placement)
        store.normalise(FeatureNorm("none", 64))
        assert store.normalised == (placement == "host")
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("free", "expected", "says"),
    [
        (10**9, "host", "are in host memory (1.0 GB free in host memory for this process)"),
        (1000, "mapped", "are read from the files as they are needed (0.0 MB free"),
    ],
)
def test_place_follows_the_memory_and_says_so(folder, monkeypatch, caplog, free, expected, says):
    asked = []

    def memory(device, processes):
        asked.append(processes)
        return Memory(free)

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(module, "free_memory", memory)
    store = FeatureStore.open(folder, 0, 2)
    with caplog.at_level(logging.INFO):
        assert store.place(CPU) == expected
        store.place(CPU, processes=1)
    assert asked == [2, 1]
    (line, _) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"features of {len(store)} images, 0.") and says in line


def test_place_that_does_not_fit_is_refused(folder, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda *rest: Memory(1000))
    store = FeatureStore.open(folder)
    refused(lambda: store.place(CPU, "device"), "placement=host", "are free")
    assert store.place(CPU, "mapped") == "mapped"
