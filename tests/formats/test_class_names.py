"""Files of class names in every common format, and real-world class folders."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.formats.class_names import distinct_names, read_class_names
from smartclip_det.formats.labelled_images import read_labelled

WNIDS = ["n01440764", "n01443537", "n01484850"]
TRIPLE = [("tench",), ("goldfish",), ("white shark",)]


def names_of(tmp_path, name, content, folders=WNIDS, filled=None):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_class_names(path, folders, filled or folders).values())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "tench\ngoldfish\n\nwhite shark\n"),
        ("a.txt", b"\xef\xbb\xbftench\r\ngoldfish\r\nwhite shark\r\n"),
        ("a.txt", "n01443537 goldfish\nn01484850 white shark\nn01440764 tench\nn09999999 unused"),
        ("a.txt", "n01443537\tgoldfish\nn01484850\twhite shark\nn01440764\ttench"),
        ("a.txt", "n01443537: goldfish\nn01484850: white shark\nn01440764: tench"),
        ("a.txt", "2 white shark\n0 tench\n1 goldfish"),
        ("a.txt", "1. tench\n2. goldfish\n3. white shark"),
        ("a.txt", "tench 0\nwhite shark 2\ngoldfish 1"),
        ("a.txt", "{0: 'tench',\n 1: 'goldfish',\n 2: 'white shark'}"),
        ("a.txt", "tench\ngoldfish\nwhite shark".encode("utf-16")),
        ("a.json", '["tench", "goldfish", "white shark"]'),
        ("a.json", '{"classes": ["tench", ["goldfish"], "white shark"]}'),
        ("a.json", '{"2": "white shark", "0": "tench", "1": "goldfish"}'),
        ("a.json", '{"0": ["n01440764", "tench"], "2": ["n01484850", "white shark"], "1": ["n01443537", "goldfish"]}'),
        ("a.json", '{"tench": 0, "goldfish": 1, "white shark": 2}'),
        ("a.json", '{"n01484850": "white shark", "n01440764": "tench", "n01443537": ["goldfish"], "n0": "unused"}'),
        ("a.csv", "tench\ngoldfish\nwhite shark\n"),
        ("a.csv", "name\ntench\ngoldfish\nwhite shark\n"),
        ("a.csv", "n01443537,goldfish\nn01484850,white shark\nn01440764,tench"),
        ("a.csv", "id,wnid,Name\n7,n01443537,goldfish\n8,n01484850,white shark\n9,n01440764,tench"),
        ("a.csv", "index,label\n1,goldfish\n0,tench\n2,white shark"),
        ("a.tsv", "wnid\twords\nn01443537\tgoldfish\nn01484850\twhite shark\nn01440764\ttench"),
    ],
)
def test_every_common_form_names_the_same(tmp_path, name, content):
    assert names_of(tmp_path, name, content) == TRIPLE


def test_synonyms(tmp_path):
    found = {"n01440764": ["tench", "Tinca tinca"], "n01443537": "goldfish, Carassius auratus", "n01484850": ["x", "x"]}
    expected = [("tench", "Tinca tinca"), ("goldfish", "Carassius auratus"), ("x",)]
    assert names_of(tmp_path, "a.json", json.dumps(found)) == expected
    words = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn01484850 x"
    assert names_of(tmp_path, "synset_words.txt", words) == expected
    # Commas occur inside other names.
    assert names_of(tmp_path, "a.txt", "boat, sailing\ncar", ["a", "b"]) == [("boat, sailing",), ("car",)]


def test_a_list_of_the_folders_names_each_by_itself(tmp_path):
    assert names_of(tmp_path, "a.txt", "hot dog\ncat", ["cat", "hot_dog"]) == [("cat",), ("hot dog",)]
    assert names_of(tmp_path, "a.json", '["n2", "n1"]', ["n1", "n2"]) == [("n1",), ("n2",)]


def test_an_order_counts_folders_without_pictures(tmp_path):
    assert names_of(tmp_path, "a.txt", "one\ntwo\nthree", WNIDS, WNIDS[::2]) == [("one",), ("three",)]
    assert names_of(tmp_path, "a.txt", "one\nthree", WNIDS, WNIDS[::2]) == [("one",), ("three",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"n01440764": null, "n01443537": "b", "n01484850": "c"}', "the name of n01440764 is None"),
        ("a.json", '{"n01440764": {"en": "a"}, "n01443537": "b", "n01484850": "c"}', "the name of n01440764 is {'en'"),
        ("a.json", '["a", 7, "c"]', "the name of n01443537 is 7"),
        ("a.json", '["a", [], "c"]', r"the name of n01443537 is \[\]"),
        ("a.json", '["a", "", "c"]', "the name of n01443537 is ''"),
        ("a.json", '["a", ["b", null], "c"]', "None"),
        ("a.json", '{"n01440764": 0, "n01443537": 1, "n01484850": 2}', "to numbers, not names"),
        ("a.json", '{"n01440764": "a", "n01443537": "b"}', "n01484850"),
        ("a.json", '{"0": "a", "1": "b", "7": "c"}', "n01440764"),
        ("a.json", '"tench"', "holds a str"),
        ("a.json", '["a", "b"', "not valid JSON"),
        ("a.txt", "a\nb", "2 names for 3 class folders"),
        ("a.txt", b"caf\xe9\nb\nc", "line 1, is not UTF-8"),
        ("a.csv", "a,b,c\nd,e,f\n", "rows of 3 columns"),
        ("a.csv", "n01440764,a\nn01440764,b\nn01443537,c\nn01484850,d", "gives n01440764 two names"),
        ("a.csv", "", "3 class folders not found"),
        ("a.csv", "wnid,name\nn01440764\n", "row 0 has 1 columns"),
    ],
)
def test_what_names_nothing_is_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        names_of(tmp_path, name, content)


def test_classes_that_share_names_are_told_apart():
    assert distinct_names([("crane",), ("crane", "heron"), ("crane",)]) == [("crane",), ("heron", "crane")]
    with pytest.raises(UserError, match="a, b of one class"):
        distinct_names([("a",), ("b",), ("a", "b")])


def folder_of(root, *files):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".heic"):
            path.write_text("x")
        else:
            Image.new("RGB", (8, 8)).save(path)
    return root


def test_folders_that_are_no_classes_are_counted(tmp_path):
    root = folder_of(
        tmp_path / "val",
        "cat/1.jpg",
        "dog/2.tif",
        "dog/more/3.png",
        "dog/.thumbs/3.jpg",
        "dog/notes.txt",
        ".ipynb_checkpoints/1.jpg",
        "@eaDir/1.jpg",
        "loose.png",
        "cat/9.heic",
        "readme.txt",
    )
    for name in ("__MACOSX", "empty"):
        (root / name).mkdir()
    found = read_labelled(root)
    assert (found.names, found.labels.tolist()) == (["cat", "dog"], [0, 1, 1])
    assert [p.name for p in found.paths] == ["1.jpg", "2.tif", "3.png"]
    assert found.counts == {"hidden": 5, "outside": 1, "other_endings": 2, "in_sub_folders": 1, "empty_folders": 1}
    told = found.summary("val")
    assert "3 images of 2 classes." in told
    assert "first: cat/9.heic" in told and "first: dog/more/3.png" in told  # noqa: PT018


def test_synonyms_of_a_folder_are_told(tmp_path):
    root = folder_of(tmp_path / "val", "a/1.jpg", "b/1.jpg")
    (tmp_path / "n.json").write_text('{"a": ["cat", "kitty"], "b": "dog"}')
    found = read_labelled(root, tmp_path / "n.json")
    assert (found.names, found.all_names) == (["cat", "dog"], [("cat", "kitty"), ("dog",)])
    assert "1 of them with synonyms" in found.summary("val")


@pytest.mark.parametrize(
    "files",
    [
        ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg"),
        ("train/1.jpg", "val/1.jpg"),
        ("data/cat/1.jpg", "data/dog/1.jpg"),
        ("images/x/1.jpg", "labels/y/1.jpg"),
    ],
)
def test_a_folder_of_splits_is_refused(tmp_path, files):
    with pytest.raises(UserError, match="look like splits or groups"):
        read_labelled(folder_of(tmp_path / "set", *files))


def test_pictures_in_one_folder_of_each_class_are_read(tmp_path):
    root = folder_of(tmp_path / "tiny", "n1/images/1.jpg", "n2/images/1.jpg")
    assert read_labelled(root).names == ["n1", "n2"]
    with pytest.raises(
        UserError, match=r"no CLASS/IMAGE files, and no CIFAR files \(a/1.heic: files without one of the suffixes"
    ):
        read_labelled(folder_of(tmp_path / "none", "a/1.heic"))
