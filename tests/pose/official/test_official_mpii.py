from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgh_app.errors import UserError
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.official import mpii
from fedgh_app.pose.official.mpii import read_mpii_predictions

# Section 7 of the project's algorithms: the published values of these predictions.
PUBLISHED = {
    "head": 95.60,
    "shoulder": 92.71,
    "elbow": 83.36,
    "wrist": 76.74,
    "hip": 81.93,
    "knee": 73.36,
    "ankle": 65.45,
    "mean": 82.34,
}
PEOPLE = 4
MPII = load_spec("mpii")


@pytest.fixture
def tompson(shared_data):
    """The published predictions, with the truth beside them."""
    return shared_data / "mpii" / "tompson_validation.mat"


def score_mpii(truth, predictions):
    return mpii.score(MPII, truth, predictions).as_json()


def points(people=PEOPLE):
    """(N, 16, 2), all different."""
    return np.arange(people * 32, dtype=np.float64).reshape(people, 16, 2)


def write(path, **arrays):
    """Arrays as a file of the suffix's kind; a suffix of two parts, .v73.mat, makes a MATLAB 7.3 file."""
    if path.name.endswith(".v73.mat"):
        with h5py.File(path, "w", userblock_size=512) as file:
            for key, value in arrays.items():
                file[key] = np.asarray(value).T  # as MATLAB does
        with path.open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    elif path.suffix == ".mat":
        scipy.io.savemat(path, arrays)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value
    return path


def truth(path, *, missing=None, boxes=None):
    """Ground truth at `points`, all visible, each head box a (3, 4) rectangle: 0.6 x diagonal = 3."""
    corner = np.zeros((2, PEOPLE))
    return write(
        path,
        pos_gt_src=points().transpose(1, 2, 0),
        jnt_missing=np.zeros((16, PEOPLE), np.uint8) if missing is None else missing,
        headboxes_src=np.stack((corner, corner + np.array([[3], [4]]))) if boxes is None else boxes,
    )


def test_published_values_to_two_decimals(tompson):
    scores = score_mpii(tompson, tompson)
    assert {name: round(scores[name], 2) for name in PUBLISHED} == PUBLISHED
    assert (scores["people"], scores["threshold"]) == (2958, 0.5)


def test_the_finer_threshold_by_a_second_implementation(tompson):
    """The evaluation of Simple Baselines, rewritten: joint ratios times percentages, at 0.1."""
    file = scipy.io.loadmat(tompson)
    here = 1 - file["jnt_missing"]
    boxes = file["headboxes_src"]
    lengths = 0.6 * np.sqrt(((boxes[1] - boxes[0]) ** 2).sum(0))
    errors = np.sqrt(((file["pos_pred_src"] - file["pos_gt_src"]) ** 2).sum(1)) / lengths
    right = 100 * ((errors <= 0.1) * here).sum(1) / here.sum(1)
    ratio = here.sum(1) / np.delete(here.sum(1), (6, 7)).sum()
    scores = score_mpii(tompson, tompson)
    assert scores["mean@0.1"] == pytest.approx(np.delete(right * ratio, (6, 7)).sum(), abs=1e-9)
    for name, joints in {"head": [9], "shoulder": [12, 13], "wrist": [10, 15], "ankle": [0, 5]}.items():
        assert scores[f"{name}@0.1"] == pytest.approx(right[joints].mean(), abs=1e-9)


@pytest.mark.parametrize("name", ["p.npz", "p.h5", "p.mat", "p.v73.mat"])
@pytest.mark.parametrize("axes", [(2, 0, 1), (1, 0, 2)])
def test_every_format_scores_the_same(tmp_path, tompson, name, axes):
    predictions = scipy.io.loadmat(tompson)["pos_pred_src"].transpose(axes)  # (N, 16, 2) or (2, 16, N)
    scores = score_mpii(tompson, write(tmp_path / name, preds=predictions))
    assert scores == score_mpii(tompson, tompson)


@pytest.mark.parametrize("name", ["p.npz", "p.h5", "p.hdf5", "p.mat", "p.v73.mat", "P.NPZ"])
def test_all_shapes_of_all_formats_are_read(tmp_path, name):
    expected = points()
    kinds = {
        "preds": [expected, expected.transpose(2, 1, 0)],
        "pos_pred_src": [expected.transpose(1, 2, 0)],
    }
    if name == "P.NPZ":
        kinds.pop("pos_pred_src")
    for key, arrays in kinds.items():
        for values in arrays:
            path = tmp_path / name
            if name == "P.NPZ":
                with path.open("wb") as file:
                    np.savez(file, preds=values)
            else:
                write(path, **{key: values})
            np.testing.assert_array_equal(read_mpii_predictions(path), expected)


def test_integers_and_half_precision_are_numbers(tmp_path):
    for dtype in (np.int32, np.float16, np.uint8):
        path = write(tmp_path / "p.npz", preds=points().astype(dtype))
        assert read_mpii_predictions(path).dtype == np.float64


def test_score_by_hand(tmp_path):
    # Reference 3, so up to 1.5 px is right at 0.5; one wrist of one person is 1.5 off, another 1.6.
    predictions = points()
    predictions[0, 10, 0] += 1.5
    predictions[1, 15, 1] -= 1.6
    predictions[2, 6] += 99  # the pelvis counts nowhere
    predictions[3, 8] += 99  # the neck counts in the mean
    predictions[0, 9] -= 99
    predictions[3, 0, 0] += 0.29
    predictions[2, 0, 0] += 0.31  # at 0.1 this ankle alone is wrong
    scores = score_mpii(truth(tmp_path / "t.mat"), write(tmp_path / "p.npz", preds=predictions))
    assert scores["wrist"] == pytest.approx(100 * (1 + 3 / 4) / 2)
    assert scores["head"] == 75
    assert scores["mean"] == pytest.approx(100 * (14 * 4 - 3) / (14 * 4))
    assert all(scores[name] == 100 for name in ("shoulder", "elbow", "hip", "knee", "ankle"))
    assert scores["ankle@0.1"] == pytest.approx(100 * (3 / 4 + 1) / 2)


def refused(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in (*parts, "found", "expected"):
        assert part in message, message


@pytest.mark.parametrize("name", ["p.npz", "p.h5", "p.mat", "p.v73.mat"])
def test_bad_predictions_are_named(tmp_path, name):
    ground, path = truth(tmp_path / "t.mat"), tmp_path / name

    def score():
        score_mpii(ground, path)

    refused(score, str(path), "no such file")
    path.write_bytes(b"")
    refused(score, str(path))
    write(path, joints=points())
    refused(score, str(path), "preds", "pos_pred_src")
    write(path, preds=points()[:, :14])
    refused(score, str(path), "(4, 14, 2)", "(N, 16, 2) or (2, 16, N)")
    write(path, preds=points()[..., 0])
    refused(score, str(path), "(4, 16)")
    write(path, pos_pred_src=points())
    refused(score, str(path), "(4, 16, 2)", "(16, 2, N)")
    write(path, preds=points(3))
    refused(score, str(path), "3 people", "4")
    nowhere = points()
    nowhere[2, 7, 0] = np.nan
    write(path, preds=nowhere)
    refused(score, str(path), "nan", "person 2, joint 7")
    write(path, preds=points() * 1j)
    refused(score, str(path), "complex")
    if name != "p.v73.mat":
        text = np.full((4, 16, 2), b"x")
        write(path, preds=text)
        refused(score, str(path), "preds")
    whole = write(path, preds=points()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(score, str(path))


def test_objects_in_an_npz_are_refused_and_not_unpickled(tmp_path):
    path = tmp_path / "p.npz"
    np.savez(path, preds=np.array([Path("x")], dtype=object))
    refused(lambda: read_mpii_predictions(path), str(path))


def test_a_group_in_place_of_an_array_is_refused(tmp_path):
    path = tmp_path / "p.h5"
    with h5py.File(path, "w") as file:
        file.create_group("preds")
    refused(lambda: read_mpii_predictions(path), str(path))


def test_cells_and_structures_are_refused(tmp_path):
    path = tmp_path / "p.mat"
    for value in (np.array([1, "a"], dtype=object), {"field": 1.0}):
        scipy.io.savemat(path, {"preds": value})
        refused(lambda: read_mpii_predictions(path), str(path), "real numbers")


@pytest.mark.parametrize("name", ["p", "p.txt", "p.npy"])
def test_other_types_of_file_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    refused(lambda: read_mpii_predictions(tmp_path / name), name, ".mat, .h5 or .npz")


def test_bad_ground_truth_is_named(tmp_path):
    path = tmp_path / "t.mat"
    predictions = write(tmp_path / "p.npz", preds=points())

    def score():
        score_mpii(path, predictions)

    write(path, pos_gt_src=points().transpose(1, 2, 0))
    refused(score, str(path), "jnt_missing")
    truth(path, missing=np.zeros((16, 3)))
    refused(score, str(path), "jnt_missing", "(16, 3)", "(16, 4)")
    truth(path, boxes=np.zeros((2, 4)))
    refused(score, str(path), "headboxes_src", "(2, 2, 4)")
    boxes = np.zeros((2, 2, PEOPLE))
    boxes[1, :, [0, 1, 3]] = 1
    truth(path, boxes=boxes)
    refused(score, str(path), "person 2")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=600), kind=st.sampled_from(["npz", "h5", "mat", "v73.mat"]), magic=st.booleans())
def test_random_bytes_give_a_user_error_and_nothing_else(tmp_path, data, kind, magic):
    starts = {
        "npz": b"PK\x03\x04",
        "h5": b"\x89HDF\r\n\x1a\n",
        "mat": b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM",
        "v73.mat": b"MATLAB 7.3 MAT-file".ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n",
    }
    path = tmp_path / f"f.{kind}"
    path.write_bytes(starts[kind] * magic + data)
    refused(lambda: read_mpii_predictions(path), str(path))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["npz", "h5", "mat", "v73.mat"]),
    place=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
)
def test_one_damaged_byte_gives_numbers_or_a_user_error(tmp_path, kind, place, byte):
    original = tmp_path / f"whole.{kind}"
    if not original.exists():
        write(original, preds=points())
    content = bytearray(original.read_bytes())
    content[int(place * len(content))] = byte
    path = tmp_path / f"damaged.{kind}"
    path.write_bytes(content)
    try:
        found = read_mpii_predictions(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert found.shape[1:] == (16, 2)


def test_a_file_that_points_to_others_or_asks_for_all_memory(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(8 * 32 * PEOPLE))
    write(tmp_path / "other.h5", preds=points())
    made = {}
    for name in ("external", "link", "virtual", "huge"):
        made[name] = tmp_path / f"{name}.h5"
        with h5py.File(made[name], "w") as file:
            if name == "external":
                shape = (PEOPLE, 16, 2)
                file.create_dataset("preds", shape, "f8", external=[(tmp_path / "secret.bin", 0, h5py.h5f.UNLIMITED)])
            elif name == "link":
                file["preds"] = h5py.ExternalLink(tmp_path / "other.h5", "preds")
            elif name == "virtual":
                layout = h5py.VirtualLayout((PEOPLE, 16, 2), "f8")
                layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "preds", (PEOPLE, 16, 2))
                file.create_virtual_dataset("preds", layout)
            else:
                file.create_dataset("preds", (10**9, 16, 2), "f8", chunks=(1000, 16, 2))
    for name, told in (("external", "lies in another"), ("link", "no data set of"), ("virtual", "lies in another")):
        with pytest.raises(UserError, match=told):
            read_mpii_predictions(made[name])
    assert made["huge"].stat().st_size < 10_000
    with pytest.raises(UserError, match="has 256000000000 bytes, expected at most 2147483648"):
        read_mpii_predictions(made["huge"])


def test_an_archive_that_unpacks_to_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "found.npz"
    np.savez_compressed(file, preds=np.zeros((1000, 16, 2)))
    monkeypatch.setattr(mpii, "LARGEST_ARRAY_BYTES", 200_000)
    with pytest.raises(UserError, match="more than 200000 bytes when unpacked"):
        read_mpii_predictions(file)
