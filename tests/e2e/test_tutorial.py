"""docs/tutorial.md, word by word: its files are written, its commands run, in the order in which they stand."""

from __future__ import annotations

import csv
import json
import re
import secrets
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY
from trees import FEDGH, copied, environment_of

from benchmarks.loopback import SCRIPTS
from fedgh_app.pose.arms.generated import generate
from fedgh_app.runs import processes
from fedgh_app.runtimes.superlink import free_port

PAGE = (REPOSITORY / "docs/tutorial.md").read_text()
CAMERAS = {"front": "north", "left": "east", "right": "west", "top": "south"}


def bring_images(folder: Path) -> None:
    """What the page says that its reader has: generated arms under other names, and a table."""
    arms = generate(folder / "arms", count=32, image_size=(96, 96))
    content = json.loads((arms / "annotations.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    (folder / "photos").mkdir()
    header = re.search(r"^file,camera,.*$", PAGE, re.MULTILINE)
    assert header
    with (folder / "points.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header[0].split(","))
        for number, person in enumerate(content["annotations"]):
            image, name = images[person["image_id"]], f"IMG_{number:04d}.jpg"
            shutil.copy(arms / "images" / image["file_name"], folder / "photos" / name)
            points = [(x, y) if seen else ("", "") for x, y, seen in zip(*[iter(person["keypoints"])] * 3, strict=True)]
            table.writerow(
                [name, CAMERAS[image["viewpoint"]], *person["bbox"], *(value for xy in points for value in xy)]
            )
    shutil.rmtree(arms)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_works_word_by_word(tmp_path: Path) -> None:
    tree = copied(tmp_path / "fedgh")
    for name in ("data", "runs", "bin"):
        (tree / name).mkdir()
    bring_images(tree / "data")
    (tree / "bin/fedgh").write_text(f'#!/bin/sh\nexec {shlex.join(FEDGH)} "$@"\n')
    (tree / "bin/fedgh").chmod(0o755)
    text = PAGE
    for port in ("8000", "9094", "9095"):  # other tests run beside this one
        text = text.replace(port, str(free_port()))
    script = []
    for kind, name, block in re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if name:
            (tree / name).write_text(block)
        else:
            assert kind == "sh"
            script.append(block)
    mark = secrets.token_hex(8)
    environment = environment_of(tree) | {
        processes.MARK: mark,
        "PATH": f"{tree / 'bin'}:{SCRIPTS}:{environment_of(tree)['PATH']}",
        "FEDGH_HOME": str(tmp_path / "home"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    with (tmp_path / "log").open("w+") as log:
        try:
            command = ["bash", "-euxo", "pipefail", "-c", "".join(script)]
            done = subprocess.run(
                command, cwd=tree, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        finally:
            processes.end_marked(mark)
    said = (tmp_path / "log").read_text()
    assert done.returncode == 0, said[-5000:] + "".join(file.read_text()[-2000:] for file in tree.glob("runs/*.log"))
    assert "32 people in 32 images in data/mine" in said and "16 people in 16 images in data/site-b" in said
    for file in ("check.png", "cameras.png", "dirichlet.png", "first/report.html", "found/predictions.json"):
        assert (tree / "runs" / file).is_file(), file
    clients = json.loads((tree / "runs/sites/result.json").read_text())["clients"]
    assert set(clients) == {"site-a", "site-b"}
