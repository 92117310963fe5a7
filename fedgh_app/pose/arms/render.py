"""A small ray caster for the arm scenes: rounded cones with a depth buffer, in a box-shaped room.

Each rounded cone is hit by a closed formula (a quadratic for its side, one for each end sphere), evaluated
only inside its bounding rectangle on the screen, so that an image takes milliseconds and depth, masks and
joints are exact.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from fedgh_app.pose.arms.scene import LIMB, ROBOT, VIEWS, Camera, Scene, Solids

Image = NDArray[np.uint8]
Array = NDArray[np.float32]

SUPERSAMPLE = 1.25
ROOM = 3.0  # metres from the middle to each wall
CEILING = 3.2
FAR = 1e6
BACKDROP = 3.5  # metres: farther surfaces take almost no contact shadow


@dataclass(frozen=True)
class Rendering:
    """One picture and what it shows.

    `image` (h, w, 3) uint8 RGB; `limb` (h, w) bool: the whole arm with its hand, also where something hides
    it; `joints` (3, 2) px; `hidden` (3,) bool: something stands before that joint.
    """

    image: Image
    limb: NDArray[np.bool_]
    joints: NDArray[np.float64]
    hidden: NDArray[np.bool_]


def render(scene: Scene, rng: np.random.Generator) -> Rendering:
    """Draw a scene; `rng` gives sensor noise and texture."""
    width, height = scene.camera.size
    rays = _rays(scene.camera.size, scene.camera.focal)
    depth, index, limb = _cast(scene.solids, scene.camera, rays)
    colour = _background(scene, rays, rng)
    figure = np.flatnonzero(index >= 0)
    colour.reshape(3, -1)[:, figure] = _shade(
        scene, rays.reshape(3, -1)[:, figure], depth.reshape(-1)[figure], index.reshape(-1)[figure]
    )
    colour *= _occlusion(depth)
    return Rendering(
        _develop(cv2.resize(cv2.merge(list(colour)), (width, height), interpolation=cv2.INTER_AREA), scene, rng),
        cv2.resize(limb.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) >= 0.5,
        scene.camera.project(scene.joints),
        _hidden(scene, depth, index),
    )


@lru_cache(maxsize=4)
def _rays(size: tuple[int, int], focal: float) -> Array:
    """Unit view rays (3, H, W) in camera axes on the supersampled grid (axes first: numpy is faster so)."""
    width, height = size
    u = (np.arange(round(width * SUPERSAMPLE)) + 0.5) / SUPERSAMPLE - 0.5 - (width - 1) / 2
    v = (np.arange(round(height * SUPERSAMPLE)) + 0.5) / SUPERSAMPLE - 0.5 - (height - 1) / 2
    rays = np.empty((3, len(v), len(u)), np.float32)
    rays[0], rays[1], rays[2] = u / focal, v[:, None] / focal, 1
    rays /= np.linalg.norm(rays, axis=0)
    return rays


def _cast(solids: Solids, camera: Camera, rays: Array) -> tuple[Array, NDArray[np.int16], NDArray[np.bool_]]:
    """Distance along each ray (FAR where nothing is hit), which solid it hits (-1: none), the limb's mask."""
    shape = rays.shape[1:]
    depth = np.full(shape, FAR, np.float32)
    index = np.full(shape, -1, np.int16)
    limb = np.zeros(shape, bool)
    starts, ends = camera.to_camera(solids.start), camera.to_camera(solids.end)
    windows = _windows(np.stack([starts, ends], axis=1), solids.radius, camera, shape)
    for i, (left, top, right, bottom) in enumerate(windows.tolist()):
        if right <= left or bottom <= top:
            continue
        window = (slice(top, bottom), slice(left, right))
        distance = _distance(rays[:, *window], starts[i], ends[i], solids.radius[i])
        nearer = distance < depth[window]
        np.copyto(depth[window], distance, where=nearer)
        np.copyto(index[window], np.int16(i), where=nearer)
        if solids.part[i] == LIMB:
            limb[window] |= distance < FAR
    return depth, index, limb


def _windows(
    centres: NDArray[np.float64], radius: NDArray[np.float64], camera: Camera, shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """Rectangles (S, 4) left, top, right, bottom of the supersampled screen that surely hold the solids.

    `centres` (S, 2, 3) are both ends in camera axes. Empty (right <= left) for what is off the screen or too
    near.
    """
    near = centres[..., 2:] - radius[..., None]
    slope = centres[..., :2] / centres[..., 2:]
    reach = camera.focal * radius[..., None] / np.maximum(near, 0.05) * (1 + np.abs(slope)) + 1
    middle = (np.array(camera.size) - 1) / 2
    low = ((camera.focal * slope - reach).min(1) + middle) * SUPERSAMPLE
    high = ((camera.focal * slope + reach).max(1) + middle + 1) * SUPERSAMPLE
    limit = np.array(shape[::-1])
    windows = np.concatenate([np.clip(np.floor(low), 0, limit), np.clip(np.ceil(high), 0, limit)], axis=1)
    windows[(near < 0.05).any((1, 2))] = 0
    return windows.astype(np.int64)


def _distance(rays: Array, start: NDArray[np.float64], end: NDArray[np.float64], radius: NDArray[np.float64]) -> Array:
    """Distance (h, w) along unit rays (3, h, w) from the origin to a rounded cone; FAR where they miss."""
    axis = end - start
    taper = float(radius[0] - radius[1])
    length2, along, near2, far2 = float(axis @ axis), float(-axis @ start), float(start @ start), float(end @ end)
    side2 = length2 - taper**2
    m2, m3, m6 = np.stack([axis, -start, -end]).astype(np.float32) @ rays.reshape(3, -1)
    r0, r1 = float(radius[0]), float(radius[1])
    result = np.full(m2.shape, FAR, np.float32)
    if side2 > 0:
        k2 = np.float32(side2) - m2 * m2
        k1 = np.float32(side2) * m3 - np.float32(along - taper * r0) * m2
        k0 = np.float32(side2 * near2 - along**2 + 2 * along * taper * r0 - length2 * r0**2)
        h = k1 * k1 - k0 * k2
        t = (-np.sqrt(np.maximum(h, 0)) - k1) / np.maximum(k2, 1e-9)
        y = np.float32(along - r0 * taper) + t * m2
        np.copyto(result, t, where=(h > 0) & (y > 0) & (y < side2))
    for middle, squared, r in ((m3, near2, r0), (m6, far2, r1)):
        h = middle * middle - np.float32(squared - r * r)
        t = -middle - np.sqrt(np.maximum(h, 0))
        np.copyto(result, t, where=(h > 0) & (t < result))
    return result.reshape(rays.shape[1:])


def _shade(scene: Scene, rays: Array, depth: Array, index: NDArray[np.int16]) -> Array:
    """Colours (3, n) of hit points: lamp and hemisphere light, gloss, and a room mirrored in metal."""
    solids, camera = scene.solids, scene.camera
    start = camera.to_camera(solids.start).T.astype(np.float32)
    axis = camera.to_camera(solids.end).T.astype(np.float32) - start
    taper = (solids.radius[:, 0] - solids.radius[:, 1]).astype(np.float32)
    side2 = np.maximum((axis * axis).sum(0) - taper**2, 1e-9)
    offset = solids.radius[:, 0].astype(np.float32) * taper
    local = rays * depth - start[:, index]
    axes = axis[:, index]
    at = np.clip((_dot(axes, local) - offset[index]) / side2[index], 0, 1)
    normal = local - axes * at
    normal /= np.sqrt(_dot(normal, normal)) + np.float32(1e-9)
    lamp = (camera.rotation @ scene.light.direction).astype(np.float32)
    up = camera.rotation[:, 2].astype(np.float32)
    lamplight, ambient = (
        scene.light.colour.astype(np.float32)[:, None],
        scene.light.ambient.astype(np.float32)[:, None],
    )
    facing = _dot(normal, rays)
    mirrored = rays - (2 * facing) * normal
    lit = np.clip((lamp @ normal + np.float32(0.15)) / np.float32(1.15), 0, 1)  # skin and cloth scatter a little
    sky = 0.75 + 0.25 * (up @ normal)
    gloss = solids.gloss.astype(np.float32)[index]
    colour = solids.colour.T.astype(np.float32)[:, index] * (lit * lamplight + sky * ambient)
    gleam = np.clip(lamp @ mirrored, 0, 1)
    for _ in range(3):
        gleam *= gleam
    colour += gloss * np.where(gloss > 0.4, gleam**4, gleam) * lamplight  # exponents 32 and 8
    reflection = np.clip(0.5 + 1.6 * (up @ mirrored), 0, 1)
    rim = 1 + facing
    colour += np.where(solids.part[index] == ROBOT, gloss * (0.30 * reflection - 0.12), 0.10 * rim * rim * rim)
    return colour


def _dot(a: Array, b: Array) -> Array:
    return np.asarray(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def _background(scene: Scene, rays: Array, rng: np.random.Generator) -> Array:
    """The room behind the subject, on every third ray: it is out of focus anyway."""
    coarse = rays[:, 1::3, 1::3]
    shape = coarse.shape[1:]
    way = scene.camera.rotation.T.astype(np.float32) @ coarse.reshape(3, -1)
    origin = scene.camera.position.astype(np.float32)[:, None]
    positive = way > 0
    room = np.array([[ROOM], [ROOM], [CEILING]], np.float32)
    limits = np.where(positive, room, np.array([[-ROOM], [-ROOM], [0.0]], np.float32))
    reach = (limits - origin) / np.where(np.abs(way) < 1e-6, np.float32(1e-6), way)
    nearest = reach.argmin(0)
    hit = origin + way * reach.min(0)
    # -x, +x, -y, +y, floor, ceiling
    wall = 2 * nearest + np.take_along_axis(positive, nearest[None], axis=0)[0]
    # coordinates on the surface: (y, z) on the x walls, (x, z) on the y walls, (x, y) on floor and ceiling
    first = np.where(nearest == 0, hit[1], hit[0])
    second = np.where(nearest == 2, hit[1], hit[2])
    colour = scene.wall_colours.T.astype(np.float32)[:, wall]
    for patch in scene.patches:
        inside = (wall == patch.wall) & (first > patch.low[0]) & (first < patch.high[0])
        inside &= (second > patch.low[1]) & (second < patch.high[1])
        colour[:, inside] = patch.colour.astype(np.float32)[:, None]
    floor = wall == 4
    x, y = first[floor], second[floor]
    tiles = 0.92 + 0.12 * ((np.floor(x / 0.45) + np.floor(y / 0.45)) % 2)
    colour[:, floor] *= tiles * (1 - 0.55 * np.exp(-(x**2 + y**2) / 0.25))  # the subject's shadow
    bright = scene.light.ambient + scene.light.colour * (0.35 + 0.35 * scene.light.direction[2])
    clouds = cv2.resize(rng.normal(1.0, 0.09, (5, 5)), shape[::-1], interpolation=cv2.INTER_CUBIC)
    grain = cv2.resize(rng.normal(1.0, 0.035, (48, 48)), shape[::-1], interpolation=cv2.INTER_LINEAR)
    picture = colour.reshape(3, *shape) * bright.astype(np.float32)[:, None, None]
    picture *= (clouds * grain).astype(np.float32)
    size = rays.shape[:0:-1]
    return np.stack([cv2.resize(cv2.blur(p, (3, 3)), size, interpolation=cv2.INTER_LINEAR) for p in picture])


def _occlusion(depth: Array) -> Array:
    """Depth darkening (Luft et al., SIGGRAPH 2006): dim what lies behind a near edge, as its shadow would."""
    near = np.minimum(depth, BACKDROP)
    small = cv2.resize(near, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    small = cv2.blur(cv2.blur(small, (7, 7)), (7, 7))
    behind = near - cv2.resize(small, depth.shape[::-1], interpolation=cv2.INTER_LINEAR)
    strength = np.where(depth < BACKDROP, np.float32(0.5), np.float32(0.12))  # the far wall catches little
    return np.asarray(1 - strength * np.clip(behind / 0.3, 0, 1), np.float32)


def _develop(colour: Array, scene: Scene, rng: np.random.Generator) -> Image:
    """The camera's own colours, blur and noise; linear 0..1 floats to uint8."""
    view = VIEWS[scene.viewpoint]
    gain = view.exposure * rng.uniform(0.92, 1.08) * 255 * np.array(view.white_balance)
    blurred = cv2.GaussianBlur(colour, (0, 0), rng.uniform(0.35, 0.7))
    picture = np.asarray(blurred * gain, np.float32)
    picture += rng.standard_normal(picture.shape, np.float32) * np.float32(view.noise * rng.uniform(0.7, 1.3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _hidden(scene: Scene, depth: Array, index: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Which joints have the robot, or more of the body than their own flesh, in front of them."""
    pixels = np.rint((scene.camera.project(scene.joints) + 0.5) * SUPERSAMPLE - 0.5).astype(int)
    away = np.linalg.norm(scene.camera.to_camera(scene.joints), axis=1)
    hidden = np.zeros(len(pixels), bool)
    for j, (x, y) in enumerate(pixels):
        if 0 <= y < depth.shape[0] and 0 <= x < depth.shape[1] and index[y, x] >= 0:
            part = scene.solids.part[index[y, x]]
            hidden[j] = part == ROBOT or (part != LIMB and depth[y, x] < away[j] - 0.12)
    return hidden
