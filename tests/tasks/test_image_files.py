"""Images out of folders and parquet; what is wrong with them in one line; splits by their pixels."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from tiny_images import COLOURS, save_tiny_vit, save_toy_images, toy_image
from tunewise.errors import DataError, SpecError
from tunewise.spec import DataSpec, ModelSpec
from tunewise.tasks.build import detect_task
from tunewise.tasks.image import ImageClassification
from tunewise.tasks.image_files import read_images
from tunewise.tasks.pixels import decode

KEPT = {"validation_size": 0.1, "test_size": 0.1}


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_parquet(path, images, labels, *, names=None, flat=False):
    """A file as Hugging Face's `datasets` writes one, or with bare bytes."""
    cells = images if flat else [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(images)]
    table = pyarrow.table({"img": cells, "label": labels})
    if names:
        features = {"img": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path)
    return path


@pytest.fixture(scope="module")
def images():
    """(bytes, colour) of 45 toy images."""
    draw = random.Random(5)
    return [(encoded(toy_image(colour, draw)), colour) for _ in range(15) for colour in COLOURS]


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return ModelSpec(path=str(save_tiny_vit(tmp_path_factory.mktemp("vit") / "model")))


def load(vit, **data):
    return ImageClassification(vit, DataSpec(**{**KEPT, **data}))


# --- forms ----------------------------------------------------------------------------------------


def test_a_folder_and_parquet_give_the_same_images(tmp_path, images):
    colours = list(COLOURS)
    contents, labels = [i for i, _ in images], [c for _, c in images]
    for number, (content, colour) in enumerate(images):
        (tmp_path / "folder" / colour).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / colour / f"{number:02}.png").write_bytes(content)
    numbers = [colours.index(c) for c in labels]
    found = {
        "folder": read_images(tmp_path / "folder", None, "label"),
        "names": read_images(write_parquet(tmp_path / "a.parquet", contents, labels), None, "label"),
        "classes": read_images(write_parquet(tmp_path / "b.parquet", contents, numbers, names=colours), None, "label"),
        "bytes": read_images(write_parquet(tmp_path / "c.parquet", contents, labels, flat=True), "img", "label"),
    }
    for form, rows in found.items():
        assert sorted((r.label, r.content()) for r in rows) == sorted((c, i) for i, c in images), form
    assert found["folder"][0].where == "blue/02.png"
    assert found["classes"][1].where == "b.parquet, row 2"


def test_class_numbers_without_names_are_labels_by_value(tmp_path, images):
    labels = [(0, 10, 2)[i % 3] for i in range(len(images))]
    path = write_parquet(tmp_path / "a.parquet", [i for i, _ in images], labels)
    assert ImageClassification.read_labels(DataSpec(path=str(path))) == ["0", "2", "10"]


def test_the_task_is_known_from_the_form_of_the_data(tmp_path, images, toy_csv):
    folder = save_toy_images(tmp_path / "toy", each=2)
    table = write_parquet(tmp_path / "a.parquet", *map(list, zip(*images)))
    bare = write_parquet(tmp_path / "b.parquet", *map(list, zip(*images)), flat=True)
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "t.parquet")

    def task(data, **more):
        return detect_task(DataSpec(path=str(data), **more))

    assert [task(p) for p in (folder, table, bare)] == ["image"] * 3
    assert [task(p) for p in (toy_csv, tmp_path / "t.parquet", tmp_path / "absent.csv")] == ["text"] * 3
    assert task(toy_csv, image="file") == "image"


# --- what is wrong --------------------------------------------------------------------------------


def fault(call, *arguments, **options):
    with pytest.raises((DataError, SpecError)) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no image that could be read"),
        (b"not an image", "no image that could be read"),
        (encoded(Image.effect_noise((64, 64), 50))[:900], "a damaged image"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "a damaged image"),
        (encoded(Image.new("F", (8, 8)), "TIFF"), "mode F"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_with_the_way_out(tmp_path, vit, content, expected):
    folder = save_toy_images(tmp_path / "toy", each=4)
    (folder / "red" / "002.png").write_bytes(content)
    message = fault(load, vit, path=str(folder))
    assert message.startswith("red/002.png: ")
    assert expected in message
    assert message.endswith("replace the image or remove the row")


def test_an_image_in_parquet_that_cannot_be_read_is_named_by_its_row(tmp_path, vit, images):
    contents, labels = map(list, zip(*images))
    contents[7] = contents[7][:100]
    path = write_parquet(tmp_path / "a.parquet", contents, labels)
    assert fault(load, vit, path=str(path)).startswith("a.parquet, row 8: a damaged image")


def test_faults_of_tables_and_folders_name_the_place(tmp_path, vit, images):
    contents, labels = map(list, zip(*images))
    (tmp_path / "t.csv").write_text("file_name,label\nnowhere.png,a\nnowhere.png,b\n")
    assert "t.csv: images are read from" in fault(load, vit, path=str(tmp_path / "t.csv"))
    two = pyarrow.table({"left": [b"x"], "right": [b"y"], "label": [0]})
    parquet.write_table(two, tmp_path / "u.parquet")
    assert "--image" in fault(load, vit, path=str(tmp_path / "u.parquet"))
    null = write_parquet(tmp_path / "n.parquet", contents, [None, *labels[1:]])
    assert fault(load, vit, path=str(null)).startswith("n.parquet, row 1: column 'label' is null")
    unlabelled = write_parquet(tmp_path / "m.parquet", contents, [-1] * len(labels), names=["a", "b"])
    assert "row 1: column 'label' is -1" in fault(load, vit, path=str(unlabelled))
    beyond = write_parquet(tmp_path / "l.parquet", contents, [7] * len(labels), names=["a", "b"])
    assert "column 'label' is 7, and the file names 2 classes" in fault(load, vit, path=str(beyond))
    assert "no column 'labels'" in fault(load, vit, path=str(null), label="labels")
    assert "'label' holds int64" in fault(load, vit, path=str(beyond), image="label", label="img")
    splits = tmp_path / "splits"
    save_toy_images(splits / "train", each=2)
    save_toy_images(splits / "test", each=2)
    message = fault(load, vit, path=str(splits))
    assert "one by one" in message and str(splits / "test") in message
    assert "expected: LABEL/NAME" in fault(load, vit, path=str(splits / "train" / "red"))
    assert "leave --image out" in fault(load, vit, path=str(splits / "train"), image="img")


# --- decoding -------------------------------------------------------------------------------------


def test_images_of_every_mode_become_rgb(tmp_path, vit):
    folder = save_toy_images(tmp_path / "toy", each=12)
    plain = toy_image("red", random.Random(77))
    modes = {"L": "png", "LA": "png", "RGBA": "png", "P": "png", "CMYK": "jpg", "1": "png"}
    for mode, suffix in modes.items():
        plain.convert(mode).save(folder / "red" / f"odd-{mode}.{suffix}")
    Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 130).save(folder / "red" / "odd-16.png")
    exif = Image.Exif()
    exif[274] = 6
    plain.save(folder / "red" / "odd-turned.jpg", exif=exif, quality=95)
    task = load(vit, path=str(folder))
    assert "train: 1 exact duplicate dropped." in task.facts.notes  # grey with and without transparency
    odd = next(e for e in (*task.train, *task.validation, *task.test) if "odd-RGBA" in e["image"].row.where)
    assert decode(odd["image"].row).mode == "RGB" and decode(odd["image"].row, "L").mode == "L"


def test_sixteen_bits_are_scaled_and_exif_turns(tmp_path):
    values = np.linspace(0, 65535, 480).astype(np.uint16).reshape(20, 24)
    (tmp_path / "a").mkdir()
    Image.fromarray(values).save(tmp_path / "a" / "16.png")
    exif = Image.Exif()
    exif[274] = 6
    toy_image("red", random.Random(1)).save(tmp_path / "a" / "turned.png", exif=exif)
    sixteen, turned = (decode(row) for row in read_images(tmp_path, None, "label"))
    assert np.array_equal(np.asarray(sixteen)[..., 0], values >> 8)
    straight = toy_image("red", random.Random(1))
    assert turned.size == (24, 20)
    assert np.array_equal(np.asarray(turned), np.asarray(straight.rotate(-90, expand=True)))


def test_repeats_are_found_by_their_pixels_whatever_the_encoding(tmp_path, vit, images):
    test = save_toy_images(tmp_path / "test", each=4, seed=9)
    train = save_toy_images(tmp_path / "train", each=8)
    Image.open(test / "red" / "000.png").save(train / "red" / "leak.webp", lossless=True)
    Image.open(train / "blue" / "001.png").save(train / "blue" / "twice.bmp")
    task = load(vit, path=str(train), test=str(test))
    assert "train: 1 exact duplicate dropped." in task.facts.notes
    assert "train: 1 example removed, since the same image is in test." in task.facts.notes
    sources = [e["image"].row.source.name for e in (*task.train, *task.validation)]
    assert "leak.webp" not in sources and "twice.bmp" not in sources
    assert len(sources) == 24


def test_sizes_are_stratified_subsamples(tmp_path, vit):
    folder = save_toy_images(tmp_path / "toy", each=20)
    task = load(vit, path=str(folder), train_size=9, validation_size=3, test_size=3)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [9, 3, 3]
    assert sorted(e["labels"] for e in task.train) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_the_digest_follows_the_images_and_not_their_place(tmp_path):
    first, second = save_toy_images(tmp_path / "one", each=3), save_toy_images(tmp_path / "two", each=3)
    assert ImageClassification.digest(DataSpec(path=str(first))) == ImageClassification.digest(
        DataSpec(path=str(second))
    )
    (second / "red" / "notes.txt").write_text("of no concern")
    assert ImageClassification.digest(DataSpec(path=str(first))) == ImageClassification.digest(
        DataSpec(path=str(second))
    )
    toy_image("red", random.Random(3)).save(first / "red" / "000.png")
    assert ImageClassification.digest(DataSpec(path=str(first))) != ImageClassification.digest(
        DataSpec(path=str(second))
    )
