"""Benchmarks by name, from a loopback server with generated archives: truncated, wrong, disk full, malicious, valid."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import resource
import shutil
import tarfile
import time
import zipfile
from dataclasses import replace

import pytest
from huggingface_hub import constants

from smartclip_det.cli import dispatch
from smartclip_det.core.errors import UserError
from smartclip_det.formats.benchmarks import Benchmark, BenchmarkFile, benchmarks, find_benchmark, get_benchmark, plan
from smartclip_det.formats.benchmarks.counts import _CHECKS
from smartclip_det.formats.expressions.counts import FULL_SETS, FullSet
from smartclip_det.utils.archives import unpack
from tests.loopback import Loopback

INSTANCES = {
    "images": [{"id": n} for n in range(3)],
    "annotations": [{"id": 1, "image_id": {"id": 5}}],
    "categories": [{"id": 1}, {"id": 2}],
}


def zipped(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return held.getvalue()


def tarred(files: dict[str, bytes], link: str = "") -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc"
            archive.addfile(info)
    return held.getvalue()


PICTURES = zipped({f"val2017/{n}.jpg": bytes([n]) * 9000 for n in range(4)})
SERVED = {
    "/annotations.zip": zipped({"annotations/instances_val2017.json": json.dumps(INSTANCES).encode()}),
    "/val2017.zip": PICTURES,
    "/patch0.tar.gz": tarred({"patch0/a.jpg": b"a"}),
}


@pytest.fixture(scope="module")
def running():
    server = Loopback()
    yield server
    server.close()


@pytest.fixture
def server(running, monkeypatch):
    running.reset()
    running.files = dict(SERVED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return running


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def tiny(server, monkeypatch):
    """A benchmark of three parts named ``tiny``."""

    def file(name, part, gives, **facts):
        content = SERVED[f"/{name}"]
        return BenchmarkFile(
            name, part, (gives,), (f"{server.url}/{name}",), bytes=len(content), md5=md5(content), unpack=True, **facts
        )

    entry = Benchmark(
        "tiny",
        "none",
        "https://example.org",
        "coco",
        (
            file("annotations.zip", "annotations", "annotations/instances_val2017.json"),
            file("val2017.zip", "val", "val2017"),
            file("patch0.tar.gz", "more", "val/patch0", to="val"),
        ),
        (
            {
                "kind": "coco",
                "path": "annotations/instances_val2017.json",
                "images": 3,
                "annotations": 1,
                "categories": 2,
            },
            {"kind": "images", "path": "val2017", "images": 4},
        ),
    )
    monkeypatch.setitem(benchmarks(), "tiny", entry)
    return entry


def change(monkeypatch, entry, index, **facts):
    files = [replace(f, **facts) if n == index else f for n, f in enumerate(entry.files)]
    changed = replace(entry, files=tuple(files))
    monkeypatch.setitem(benchmarks(), "tiny", changed)
    return changed


class TestWhole:
    def test_files_come_into_the_layout_once(self, tiny, server, tmp_path):
        told = get_benchmark("tiny", tmp_path)
        assert [line.split(": ")[1] for line in told] == ["3 images, 1 annotations, 2 categories", "4 images"]
        assert (tmp_path / "coco/val2017/2.jpg").read_bytes() == bytes([2]) * 9000
        assert (tmp_path / "coco/val/patch0/a.jpg").read_bytes() == b"a"
        assert list(tmp_path.rglob("*.zip")) + list(tmp_path.rglob("*.part")) == []
        before = len(server.requests)
        assert get_benchmark("tiny", tmp_path) == told
        assert len(server.requests) == before
        shutil.rmtree(tmp_path / "coco/val2017")
        assert get_benchmark("tiny", tmp_path) == told
        assert [p for p, _ in server.asked()[3:]] == ["/val2017.zip"]

    def test_parts_and_kept_archives(self, tiny, server, tmp_path):
        told = get_benchmark("tiny", tmp_path, ["val"], keep=True)
        assert len(told) == 1
        assert [p for p, _ in server.asked()] == ["/val2017.zip"]
        assert (tmp_path / "coco/.downloads/val2017.zip").read_bytes() == PICTURES

    def test_what_was_put_there_by_hand_is_counted_and_not_fetched(self, tiny, server, tmp_path):
        for n in range(3):
            (tmp_path / f"coco/val2017/{n}.jpg").parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"coco/val2017/{n}.jpg").write_bytes(b"x")
        with pytest.raises(UserError, match=r"val2017 is not the full set: 3 images \(of 4\)"):
            get_benchmark("tiny", tmp_path, ["val"])
        (tmp_path / "coco/val2017/3.jpg").write_bytes(b"x")
        assert get_benchmark("tiny", tmp_path, ["val"])[0].endswith("val2017: 4 images")
        assert server.requests == []

    def test_what_is_unpacked_in_part_is_unpacked_to_the_end(self, tiny, server, tmp_path):
        get_benchmark("tiny", tmp_path, ["val"], keep=True)
        (tmp_path / "coco/.downloads/tiny.json").unlink()
        (tmp_path / "coco/val2017/3.jpg").unlink()
        before = len(server.requests)
        assert get_benchmark("tiny", tmp_path, ["val"])[0].endswith("val2017: 4 images")
        assert len(server.requests) == before

    def test_the_next_address_is_asked_where_one_fails(self, tiny, server, monkeypatch, tmp_path):
        change(monkeypatch, tiny, 1, addresses=(f"{server.url}/gone.zip", f"{server.url}/val2017.zip"))
        get_benchmark("tiny", tmp_path, ["val"])
        change(monkeypatch, tiny, 0, addresses=(f"{server.url}/gone.zip", "http://127.0.0.1:9/x.zip"))
        with pytest.raises(
            UserError, match=r"gone.zip: the server answered 404. http://127.0.0.1:9/x.zip: ConnectError"
        ):
            get_benchmark("tiny", tmp_path, ["annotations"])

    def test_expressions_are_counted_by_their_reader(self, server, monkeypatch, tmp_path):
        refs = [
            {
                "sentences": [{"sent": "left dog", "sent_id": 1}],
                "ann_id": 7,
                "image_id": 3,
                "ref_id": 1,
                "split": "val",
                "category_id": 1,
                "file_name": "COCO_train2014_000000000003_7.jpg",
            }
        ]
        held = {
            "images": [{"id": 3, "file_name": "COCO_train2014_000000000003.jpg", "width": 9, "height": 9}],
            "annotations": [{"id": 7, "image_id": 3, "category_id": 1, "bbox": [1, 1, 4, 4]}],
            "categories": [{"id": 1, "name": "dog"}],
        }
        entry = find_benchmark("refcoco")
        server.files["/refcoco.zip"] = zipped(
            {
                "refcoco/instances.json": json.dumps(held).encode(),
                "refcoco/refs(unc).p": pickle.dumps(refs),
                "refcoco/refs(google).p": pickle.dumps(refs),
            }
        )
        file = replace(entry.files[0], addresses=(f"{server.url}/refcoco.zip",))
        monkeypatch.setitem(benchmarks(), "refcoco", replace(entry, files=(file,)))
        with pytest.raises(UserError, match=r"not the sentences of refcoco-unc: sentences of val: 1 \(of 10,834\)"):
            get_benchmark("refcoco", tmp_path)
        monkeypatch.setitem(FULL_SETS, "refcoco-unc", FullSet(("val",), {"val": 1}, {"val": 1}, {"val": 1}))
        assert get_benchmark("refcoco", tmp_path)[0].endswith("refs(unc).p: 1 val")


class TestBroken:
    def test_a_cut_is_resumed_within_a_run(self, tiny, server, tmp_path):
        server.cuts["val2017.zip"] = [5000, 7000]
        get_benchmark("tiny", tmp_path, ["val"])
        assert server.asked() == [
            ("/val2017.zip", None),
            ("/val2017.zip", "bytes=5000-"),
            ("/val2017.zip", "bytes=12000-"),
        ]

    @pytest.mark.parametrize("ranges", [True, False])
    def test_what_broke_off_for_good_is_resumed_by_the_next_run(self, tiny, server, tmp_path, ranges):
        server.cuts["val2017.zip"] = [5000, *[0] * 20]
        with pytest.raises(UserError, match=r"Could not download val2017.zip.*MB are saved in .*val2017.zip.part"):
            get_benchmark("tiny", tmp_path, ["val"])
        server.reset()
        server.without_ranges = not ranges
        get_benchmark("tiny", tmp_path, ["val"])
        assert server.asked() == [("/val2017.zip", "bytes=5000-")]
        assert (tmp_path / "coco/val2017/3.jpg").stat().st_size == 9000

    @pytest.mark.parametrize("other", [PICTURES[:-500], PICTURES + b"more"])
    def test_a_file_of_another_size_is_refused(self, tiny, server, tmp_path, other):
        server.files["/val2017.zip"] = other
        with pytest.raises(UserError, match=f"has {len(other):,} bytes and is not the published one"):
            get_benchmark("tiny", tmp_path, ["val"])
        assert list(tmp_path.rglob("*.part")) == []
        server.files["/val2017.zip"] = PICTURES
        get_benchmark("tiny", tmp_path, ["val"])

    def test_a_file_of_another_hash_is_refused(self, tiny, server, tmp_path):
        server.files["/val2017.zip"] = bytes([PICTURES[0] ^ 1]) + PICTURES[1:]
        with pytest.raises(UserError, match=f"md5 is {md5(server.files['/val2017.zip'])} instead of {md5(PICTURES)}"):
            get_benchmark("tiny", tmp_path, ["val"])
        assert not (tmp_path / "coco/val2017").exists()
        assert list(tmp_path.rglob("val2017.zip*")) == []

    def test_an_archive_that_is_none(self, tiny, server, tmp_path, monkeypatch):
        server.files["/val2017.zip"] = PICTURES[:20_000]
        change(monkeypatch, tiny, 1, bytes=None, md5=None)
        with pytest.raises(UserError, match="incomplete or corrupt"):
            get_benchmark("tiny", tmp_path, ["val"])

    def test_counts_that_are_not_the_full_set_s(self, tiny, tmp_path, monkeypatch):
        checks = ({**tiny.checks[0], "images": 5}, tiny.checks[1])
        monkeypatch.setitem(benchmarks(), "tiny", replace(tiny, checks=checks))
        with pytest.raises(UserError, match=r"not the full set: 3 images \(of 5\)"):
            get_benchmark("tiny", tmp_path)

    def test_offline(self, tiny, server, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
            get_benchmark("tiny", tmp_path)
        assert server.requests == []


class TestFullDisk:
    def test_told_before_a_byte_comes(self, tiny, server, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
        with pytest.raises(UserError, match="No space for tiny"):
            get_benchmark("tiny", tmp_path)
        assert server.requests == []

    def test_told_before_an_archive_is_unpacked(self, tiny, server, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)
        (tmp_path / "big.zip").write_bytes(PICTURES)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=30_000))
        with pytest.raises(UserError, match="No space for the contents of big.zip: 0.0 MB needed"):
            unpack(tmp_path / "big.zip", tmp_path / "out")

    @pytest.mark.parametrize(("limit", "kept"), [(20_000, "val2017.zip.part"), (5000, "val2017.zip.part")])
    def test_on_the_way_nothing_is_lost(self, tiny, server, tmp_path, limit, kept):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(UserError, match="The disk is full"):
                get_benchmark("tiny", tmp_path, ["val"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert 0 < next(tmp_path.rglob(kept)).stat().st_size <= limit
        server.reset()
        get_benchmark("tiny", tmp_path, ["val"])
        assert [r for _, r in server.asked()] != [None]

    def test_while_an_archive_is_unpacked(self, tmp_path):
        (tmp_path / "a.zip").write_bytes(zipped({"small": b"x" * 100, "large": b"x" * 50_000}))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(UserError, match=r"a.zip was extracted in part"):
                unpack(tmp_path / "a.zip", tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not (tmp_path / "out/large").exists()
        assert unpack(tmp_path / "a.zip", tmp_path / "out") == 2
        assert (tmp_path / "out/large").stat().st_size == 50_000


class TestEvilArchives:
    @pytest.mark.parametrize("name", ["../evil", "/tmp/evil-of-benchmarks", "a/../../evil", "..\\evil"])
    @pytest.mark.parametrize("pack", [zipped, tarred])
    def test_nothing_lands_outside(self, tmp_path, name, pack):
        (tmp_path / "a").write_bytes(pack({name: b"x", "fine": b"y"}))
        with pytest.raises(UserError, match="would be written outside"):
            unpack(tmp_path / "a", tmp_path / "deep/out")
        assert list(tmp_path.rglob("*evil*")) == []

    def test_links_are_refused(self, tmp_path):
        (tmp_path / "a.tar.gz").write_bytes(tarred({}, link="etc"))
        link = zipfile.ZipInfo("etc")
        link.external_attr = 0o120777 << 16
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(link, "/etc")
        for name in ("a.tar.gz", "a.zip"):
            with pytest.raises(UserError, match="link or device"):
                unpack(tmp_path / name, tmp_path / "out")
        assert not (tmp_path / "out/etc").exists()


class TestNamesAndPlans:
    def test_a_typo(self):
        with pytest.raises(UserError, match="Nearest: coco-2017"):
            find_benchmark("coco2017")
        with pytest.raises(UserError, match="part of coco-2017='vall' is not known. Allowed: annotations, val, train"):
            plan("coco-2017", "data", ["vall"])

    def test_a_dry_run_tells_gigabytes_and_writes_nothing(self, tiny, server, tmp_path, capsys, monkeypatch):
        change(monkeypatch, tiny, 2, bytes=None, addresses=(f"{server.url}/gone", f"{server.url}/patch0.tar.gz"))
        size = sum(len(c) for c in SERVED.values())
        assert plan("tiny", tmp_path, ask=True).known_bytes == size
        with pytest.raises(SystemExit) as left:
            dispatch.main(
                ["data", "get", "coco-2017", "tiny", "flickr30k-entities", "--out", str(tmp_path), "--dry-run"]
            )
        assert left.value.code == 0
        told = capsys.readouterr().out
        for part in ("train2017.zip (train): 19.337 GB", "20.405 GB to download", "CC BY 4.0", "DenotationGraph"):
            assert part in told
        assert [m for m, _, _ in server.requests if m == "GET"] == []
        assert list(tmp_path.iterdir()) == []

    def test_every_entry_is_whole(self):
        for benchmark in benchmarks().values():
            assert benchmark.home.startswith("https://")
            assert benchmark.files or benchmark.by_hand
            assert all(n in benchmarks() for n in benchmark.needs)
            assert all(c["kind"] in _CHECKS for c in benchmark.checks)
            assert all(c["set"] in FULL_SETS for c in benchmark.checks if c["kind"] == "expressions")
            for file in benchmark.files:
                assert file.gives
                assert bool(file.addresses) != bool(file.hub)
                assert {k: len(v) for k, v in file.hashes().items()}.items() <= {"md5": 32, "sha256": 64}.items()

    def test_the_hub_s_mirror_is_followed(self, monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://mirror")
        assert find_benchmark("grefcoco").files[0].where() == (
            "http://mirror/datasets/FudanCVL/gRefCOCO/resolve/main/grefs%28unc%29.json",
        )
