"""What stands before the camera in one generated arm image: subject, robot, camera, light, room.

World axes in metres: x to the subject's right, y forward (the way the subject looks), z up; the subject
stands at the origin. One subject only: body and clothes never change, as in the FedGH paper's arm images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Radius = float | tuple[float, float]  # of both ends of a solid, or of each

VIEWPOINTS = ("front", "left", "right", "top")
POSTURES = ("upright", "extended")
LIMB, BODY, ROBOT = 1, 2, 3

UPPER_ARM, FOREARM, HAND = 0.29, 0.26, 0.08  # metres
SKIN, SHIRT, TROUSERS, HAIR = (0.80, 0.58, 0.45), (0.13, 0.42, 0.50), (0.16, 0.17, 0.23), (0.20, 0.13, 0.09)
STEEL, DARK_STEEL, ACCENT, RUBBER = (0.66, 0.68, 0.71), (0.24, 0.25, 0.28), (0.86, 0.42, 0.10), (0.09, 0.09, 0.1)


@dataclass(frozen=True)
class View:
    """One fixed camera: where it hangs and what its sensor does to colours.

    Azimuth in degrees from straight ahead towards the subject's right, elevation above the horizon.
    """

    azimuth: float
    elevation: float
    white_balance: tuple[float, float, float]
    exposure: float
    noise: float


VIEWS = {
    "front": View(0.0, 10.0, (1.00, 1.00, 1.00), 1.00, 2.0),
    "left": View(-52.0, 4.0, (1.08, 1.00, 0.88), 0.95, 3.0),
    "right": View(72.0, 8.0, (0.90, 1.00, 1.10), 1.05, 2.5),
    "top": View(28.0, 60.0, (0.96, 1.04, 0.97), 1.0, 4.0),
}


@dataclass(frozen=True)
class Solids:
    """S rounded cones: `start`, `end` (S, 3), `radius` (S, 2) m; `colour` (S, 3) RGB 0..1; `part` LIMB, BODY, ROBOT."""

    start: Floats
    end: Floats
    radius: Floats
    colour: Floats
    gloss: Floats
    part: NDArray[np.uint8]


@dataclass(frozen=True)
class Camera:
    """Pinhole camera; rows of `rotation` are its right, down, forward axes. `focal` px, `size` (w, h) px."""

    position: Floats
    rotation: Floats
    focal: float
    size: tuple[int, int]

    def to_camera(self, points: Floats) -> Floats:
        """World points (..., 3) in camera axes, metres."""
        return (points - self.position) @ self.rotation.T

    def project(self, points: Floats) -> Floats:
        """World points (..., 3) to pixels (..., 2), pixel centres at integers."""
        seen = self.to_camera(points)
        middle = (np.array(self.size) - 1) / 2
        return self.focal * seen[..., :2] / seen[..., 2:] + middle


@dataclass(frozen=True)
class Light:
    """A distant lamp (`direction` towards it) over an ambient term; colours RGB."""

    direction: Floats
    colour: Floats
    ambient: Floats


@dataclass(frozen=True)
class Patch:
    """A coloured rectangle on a wall: window, poster, cabinet. `low`, `high` (2,) m in wall coordinates."""

    wall: int
    low: Floats
    high: Floats
    colour: Floats


@dataclass(frozen=True)
class Scene:
    """All that one image shows. `joints` (3, 3): shoulder, elbow, wrist in world metres."""

    viewpoint: str
    joints: Floats
    solids: Solids
    camera: Camera
    light: Light
    wall_colours: Floats
    patches: tuple[Patch, ...]


def sample_scene(rng: np.random.Generator, viewpoint: str, posture: str, size: tuple[int, int]) -> Scene:
    """Draw a scene of the given viewpoint and posture for an image of `size` (w, h)."""
    parts = _Parts()
    yaw = np.radians(rng.uniform(-10, 10))
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    sway = np.append(rng.uniform(-0.03, 0.03, 2), rng.uniform(-0.02, 0.02))
    joints = _arm_joints(rng, posture) @ turn.T + sway
    _add_arm(parts, joints, rng)
    _add_body(parts, turn, sway, rng)
    _add_robot(parts, joints, rng)
    wall_colours = np.clip(_WALLS + rng.uniform(-0.12, 0.12, (6, 1)) + rng.uniform(-0.05, 0.05, (6, 3)), 0.05, 0.95)
    camera, light = _camera(rng, VIEWS[viewpoint], size), _light(rng)
    patches = tuple(_patch(rng) for _ in range(rng.integers(8, 15)))
    return Scene(viewpoint, joints, parts.solids(), camera, light, wall_colours, patches)


# The room's -x, +x, -y, +y, floor and ceiling: each camera looks at other walls.
_WALLS = np.array(
    [
        [0.72, 0.66, 0.58],
        [0.60, 0.70, 0.66],
        [0.74, 0.74, 0.76],
        [0.55, 0.60, 0.72],
        [0.58, 0.50, 0.43],
        [0.80, 0.80, 0.80],
    ]
)


class _Parts:
    """Collects rounded cones."""

    def __init__(self) -> None:
        self.rows: list[tuple[Floats, Floats, tuple[float, float], ArrayLike, float, int]] = []

    def add(
        self, start: ArrayLike, end: ArrayLike, radius: Radius, colour: ArrayLike, part: int, gloss: float = 0.1
    ) -> None:
        radii = radius if isinstance(radius, tuple) else (radius, radius)
        self.rows.append((np.asarray(start, float), np.asarray(end, float), radii, colour, gloss, part))

    def solids(self) -> Solids:
        start, end, radius, colour, gloss, part = (np.array(column) for column in zip(*self.rows, strict=True))
        return Solids(start, end, radius, colour.astype(float), gloss, part.astype(np.uint8))


def _arm_joints(rng: np.random.Generator, posture: str) -> Floats:
    """Shoulder, elbow, wrist (3, 3) from joint angles drawn within an arm's limits (degrees)."""
    if posture == "upright":  # upper arm low, forearm bent up
        lift, outward = rng.uniform(25, 70), rng.uniform(-5, 50)
        bend, twist = rng.uniform(65, 125), rng.uniform(-30, 30)
    else:  # arm held out, nearly straight
        lift, outward = rng.uniform(62, 108), rng.uniform(-12, 65)
        bend, twist = rng.uniform(4, 38), rng.uniform(-40, 40)
    lift, outward, bend, twist = np.radians([lift, outward, bend, twist])
    upper = np.array([np.sin(lift) * np.sin(outward), np.sin(lift) * np.cos(outward), -np.cos(lift)])
    upward = np.array([0.0, 0.0, 1.0])
    hinge = _unit(upward - (upward @ upper) * upper)
    side = np.cross(upper, hinge)
    fore = np.cos(bend) * upper + np.sin(bend) * (np.cos(twist) * hinge + np.sin(twist) * side)
    shoulder = np.array([0.195, 0.0, 1.41])
    elbow = shoulder + UPPER_ARM * upper
    return np.stack([shoulder, elbow, elbow + FOREARM * fore])


def _add_arm(parts: _Parts, joints: Floats, rng: np.random.Generator) -> None:
    shoulder, elbow, wrist = joints
    fore = _unit(wrist - elbow)
    across = _unit(np.cross(fore, _unit(elbow - shoulder) + 1e-3))
    sleeve = shoulder + rng.uniform(0.42, 0.48) * (elbow - shoulder)
    parts.add(shoulder, sleeve, (0.066, 0.060), SHIRT, LIMB)
    parts.add(shoulder, elbow, (0.052, 0.042), SKIN, LIMB)
    muscle = elbow + 0.3 * (wrist - elbow)
    parts.add(elbow, muscle, (0.041, 0.044), SKIN, LIMB)
    parts.add(muscle, wrist, (0.044, 0.027), SKIN, LIMB)
    knuckles = wrist + HAND * fore
    parts.add(wrist + 0.02 * fore, knuckles - 0.012 * across, (0.027, 0.026), SKIN, LIMB)
    parts.add(wrist + 0.02 * fore, knuckles + 0.014 * across, (0.027, 0.024), SKIN, LIMB)
    curl = rng.uniform(0.0, 0.6) * np.cross(across, fore)
    for offset in (-0.024, -0.008, 0.008, 0.024):
        root = knuckles + offset * across
        parts.add(root, root + 0.075 * _unit(fore + curl), (0.0105, 0.0085), SKIN, LIMB)
    parts.add(wrist + 0.03 * fore, wrist + 0.055 * fore + 0.06 * across, (0.017, 0.010), SKIN, LIMB)


def _add_body(parts: _Parts, turn: Floats, sway: Floats, rng: np.random.Generator) -> None:
    def put(start: ArrayLike, end: ArrayLike, radius: Radius, colour: ArrayLike) -> None:
        parts.add(turn @ np.asarray(start) + sway, turn @ np.asarray(end) + sway, radius, colour, BODY)

    put((-0.09, 0.0, 1.31), (0.09, 0.0, 1.31), 0.128, SHIRT)
    for side in (-1, 1):
        put((side * 0.105, 0.0, 1.31), (side * 0.08, 0.0, 0.98), (0.125, 0.118), SHIRT)
        put((side * 0.03, -0.01, 1.475), (side * 0.175, 0.0, 1.415), (0.055, 0.062), SHIRT)
        put((side * 0.075, 0.0, 0.92), (side * 0.10, 0.0, 0.5), (0.12, 0.075), TROUSERS)
        put((side * 0.10, 0.0, 0.5), (side * 0.10, 0.0, 0.05), (0.075, 0.055), TROUSERS)
        put((side * 0.088, 0.0, 1.655), (side * 0.094, -0.005, 1.675), 0.018, SKIN)
        put((side * 0.033, 0.091, 1.690), (side * 0.036, 0.090, 1.690), 0.011, (0.1, 0.08, 0.07))
    put((0.0, 0.012, 1.30), (0.0, 0.008, 1.02), (0.135, 0.128), SHIRT)
    put((-0.08, 0.0, 0.985), (0.08, 0.0, 0.985), 0.124, SHIRT)
    put((-0.08, 0.0, 0.90), (0.08, 0.0, 0.90), 0.122, TROUSERS)
    put((0.0, -0.01, 1.45), (0.0, 0.005, 1.58), 0.052, SKIN)
    put((0.0, 0.025, 1.615), (0.0, 0.008, 1.70), (0.068, 0.092), SKIN)
    put((0.0, -0.012, 1.735), (0.0, -0.03, 1.66), (0.091, 0.084), HAIR)
    put((0.0, 0.098, 1.668), (0.0, 0.108, 1.645), (0.010, 0.015), SKIN)
    # the other arm hangs at the side
    elbow = np.array([-0.235, rng.uniform(-0.05, 0.05), 1.13])
    wrist = elbow + np.array([0.0, rng.uniform(0.02, 0.12), -0.24])
    put((-0.195, 0.0, 1.41), (-0.215, 0.0, 1.27), (0.066, 0.060), SHIRT)
    put((-0.195, 0.0, 1.41), elbow, (0.052, 0.042), SKIN)
    put(elbow, wrist, (0.043, 0.028), SKIN)
    put(wrist, wrist + np.array([0.0, 0.03, -0.12]), (0.03, 0.022), SKIN)


def _add_robot(parts: _Parts, joints: Floats, rng: np.random.Generator) -> None:
    """A manipulator on a pedestal before the subject's right side, its gripper over a point of the limb."""
    place = rng.uniform(0.15, 0.85)
    bone = 1 if rng.random() < 0.7 else 0
    held = joints[bone] + place * (joints[bone + 1] - joints[bone])
    along = _unit(joints[bone + 1] - joints[bone])
    base = np.array([0.66, 0.66, 0.80]) + rng.uniform(-0.10, 0.10, 3)
    approach = np.array([0.0, 0.0, 1.0]) + 0.45 * _unit(base - held) + rng.normal(0, 0.18, 3)
    approach = _unit(approach - 0.6 * (approach @ along) * along)
    spread = _unit(np.cross(along, approach))
    palm = held + rng.uniform(0.085, 0.115) * approach
    flange = palm + 0.07 * approach
    wrist = flange + 0.06 * _unit(approach + 0.4 * np.array([0.0, 0.0, 1.0]))
    elbow = _elbow_up(base, wrist, 0.50, 0.46)
    parts.add([base[0], base[1], 0.0], base - [0, 0, 0.10], (0.10, 0.075), DARK_STEEL, ROBOT, 0.5)
    parts.add(base - [0, 0, 0.09], base, 0.062, STEEL, ROBOT, 0.8)
    axis = _unit(np.cross(wrist - base, [0.0, 0.0, 1.0]))
    for joint, half, radius in ((base, 0.055, 0.052), (elbow, 0.048, 0.043), (wrist, 0.032, 0.031)):
        parts.add(joint - half * axis, joint + half * axis, radius, ACCENT, ROBOT, 0.45)
    parts.add(base, elbow, (0.046, 0.038), STEEL, ROBOT, 0.8)
    parts.add(elbow, wrist, (0.037, 0.027), STEEL, ROBOT, 0.8)
    parts.add(wrist, flange, 0.025, DARK_STEEL, ROBOT, 0.6)
    parts.add(flange, palm, (0.028, 0.026), STEEL, ROBOT, 0.8)
    parts.add(palm - 0.055 * spread, palm + 0.055 * spread, 0.016, DARK_STEEL, ROBOT, 0.6)
    for side in (-1, 1):
        root = palm + side * 0.058 * spread
        tip = root - 0.085 * approach
        parts.add(root, tip, 0.011, STEEL, ROBOT, 0.8)
        parts.add(tip, tip - 0.02 * approach - side * 0.008 * spread, 0.012, RUBBER, ROBOT, 0.1)


def _elbow_up(base: Floats, wrist: Floats, first: float, second: float) -> Floats:
    """The upper of a planar two-link chain's two elbow positions (law of cosines); stretched if too far."""
    reach = wrist - base
    distance = float(np.linalg.norm(reach))
    ahead = reach / distance
    along = (distance**2 + first**2 - second**2) / (2 * distance)
    height = np.sqrt(max(first**2 - along**2, 0.0))
    upward = _unit(np.array([0.0, 0.0, 1.0]) - ahead[2] * ahead)
    return base + along * ahead + height * upward


def _camera(rng: np.random.Generator, view: View, size: tuple[int, int]) -> Camera:
    azimuth, elevation = np.radians([view.azimuth + rng.uniform(-5, 5), view.elevation + rng.uniform(-3, 3)])
    backward = np.array([np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), np.sin(elevation)])
    target = np.array([0.22, 0.20, 1.34]) + rng.uniform(-0.05, 0.05, 3)
    distance = 2.3 * rng.uniform(0.94, 1.06)
    right = _unit(np.cross(-backward, [0.0, 0.0, 1.0]))
    down = np.cross(-backward, right)
    roll = np.radians(rng.uniform(-3, 3))
    right, down = np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right
    focal = min(size) * 2.3 / 1.3  # 1.3 m of the scene fill the shorter side
    return Camera(target + distance * backward, np.stack([right, down, -backward]), focal, size)


def _light(rng: np.random.Generator) -> Light:
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(30, 80))
    direction = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    direction[1] = abs(direction[1]) * 0.7 + 0.3 * direction[1]  # mostly from the side of the cameras
    warmth = rng.uniform(-0.10, 0.10)
    colour = rng.uniform(0.55, 0.85) * np.array([1 + warmth, 1.0, 1 - warmth])
    return Light(_unit(direction), colour, rng.uniform(0.40, 0.56) * np.array([1 - warmth / 2, 1.0, 1 + warmth / 2]))


def _patch(rng: np.random.Generator) -> Patch:
    wall = int(rng.integers(0, 5))  # not the ceiling: no camera sees it
    low = np.array([rng.uniform(-2.4, 2.0), rng.uniform(0.0, 1.9)]) if wall < 4 else rng.uniform(-2.4, 2.0, 2)
    return Patch(wall, low, low + rng.uniform(0.15, 0.9, 2), rng.uniform(0.1, 0.9) + rng.uniform(-0.2, 0.2, 3))


def _unit(vector: Floats) -> Floats:
    return vector / np.linalg.norm(vector)
