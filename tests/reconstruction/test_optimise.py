import cv2
import numpy as np
import pytest
import torch
import trimesh
from views_of_a_ball import CENTRE, FOCAL_PER_SIDE, RADIUS, camera_centres, color_srgb, write_dataset

from reconstruction import optimise, photo_match
from reconstruction.cameras import inverse_rigid
from reconstruction.data import load_views
from reconstruction.optimise import Optimiser
from reconstruction.rasterizer import choose_device, get_rasterizer
from reconstruction.surface import Surface, sign_loss
from reconstruction.tetgrid import Lattice
from scan2twin.config import ReconstructConfig
from scan2twin.errors import ReconstructionError
from scan2twin.frames import PixelRectangle

BOX = np.ones(3)
pytestmark = pytest.mark.usefixtures("one_thread")
RASTERIZER = get_rasterizer("numba", torch.device("cpu"))


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ball")
    return folder, write_dataset(folder, camera_centres(24))


def optimiser(ball, **options):
    folder, dataset = ball
    views, _ = load_views(folder, dataset, "train", 64)
    config = ReconstructConfig(**{"resolution": 64, "grid": 16, "appearance": "flash", **options})
    return Optimiser(views, BOX, config, RASTERIZER)


def mesh_of(optimiser):
    with torch.no_grad():
        mesh = optimiser.surface.mesh()
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)


def test_a_ball_is_recovered(ball):
    fitted = optimiser(ball, iterations=160)
    losses = [step.loss for step in fitted.run()]
    assert np.mean(losses[-20:]) < 0.25 * np.mean(losses[:20])
    mesh = mesh_of(fitted)
    assert mesh.is_watertight
    assert mesh.euler_number == 2
    distance = np.abs(np.linalg.norm(mesh.vertices - CENTRE, axis=1) - RADIUS)
    assert distance.mean() < 0.006  # a pixel is 0.02 wide at the ball
    normals = (mesh.vertices - CENTRE) / np.linalg.norm(mesh.vertices - CENTRE, axis=1, keepdims=True)
    with torch.no_grad():
        found = fitted.field.albedo_srgb(torch.tensor(mesh.vertices, dtype=torch.float32)).numpy()
    assert np.abs(found - color_srgb(normals)).mean() < 0.03


def test_a_sphere_start_finds_the_ball_too(ball):
    fitted = optimiser(ball, iterations=120, start="sphere")
    before = np.abs(np.linalg.norm(mesh_of(fitted).vertices - CENTRE, axis=1) - RADIUS).mean()
    for _ in fitted.run():
        pass
    after = np.abs(np.linalg.norm(mesh_of(fitted).vertices - CENTRE, axis=1) - RADIUS).mean()
    assert after < min(before, 0.01)


def test_a_run_resumed_from_its_state_ends_with_the_same_bits(ball):
    """On the coarse grid, when the band is about to be centred, and between: all as if nothing had happened."""
    whole, states = optimiser(ball, iterations=80), {}
    while whole.iteration < 80:
        if whole.iteration in (7, 50, 73):
            states[whole.iteration] = whole.state()
        whole.step()
    for state in states.values():
        resumed = optimiser(ball, iterations=80)
        resumed.restore(state)
        for _ in resumed.run():
            pass
        np.testing.assert_array_equal(mesh_of(resumed).vertices, mesh_of(whole).vertices)
        torch.testing.assert_close(resumed.field.state_dict(), whole.field.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(resumed.twist, whole.twist, rtol=0, atol=0)


@pytest.mark.parametrize("appearance", ["flash", "environment"])
def test_every_tensor_is_made_on_the_views_device(ball, appearance):
    """What torch makes without being told where goes to a device that fails as soon as it meets the views'."""
    fitted = optimiser(ball, iterations=60, appearance=appearance)
    with torch.device("meta"):
        while fitted.iteration < 53:  # past the finer grid, and the band once centred
            fitted.step()


@pytest.mark.skipif(choose_device().type != "cuda", reason="needs a CUDA GPU and nvdiffrast")
def test_a_gpu_finds_the_ball_as_the_cpu_does(ball):
    folder, dataset = ball
    views, _ = load_views(folder, dataset, "train", 64)
    config, errors = ReconstructConfig(resolution=64, grid=16, iterations=160), []
    for device in (torch.device("cpu"), choose_device()):
        fitted = Optimiser(views.to(device), BOX, config, get_rasterizer("auto", device))
        for _ in fitted.run():
            pass
        vertices = fitted.surface.mesh().vertices.detach().cpu().numpy()
        errors.append(np.abs(np.linalg.norm(vertices - CENTRE, axis=1) - RADIUS).mean())
    assert errors[1] < 1.2 * errors[0]


def test_exposure_of_each_view_is_found(tmp_path):
    gains = np.exp(np.linspace(-0.25, 0.25, 18))
    np.random.default_rng(0).shuffle(gains)
    dataset = write_dataset(tmp_path, camera_centres(18), heldout_every=0, exposure=gains)
    fitted = optimiser((tmp_path, dataset), iterations=300)
    for _ in fitted.run():
        pass
    found = fitted.gains().detach().numpy().mean(axis=1)
    assert np.exp(np.log(fitted.gains().detach().numpy()).mean()) == pytest.approx(1, abs=1e-4)
    assert np.corrcoef(np.log(found), np.log(gains))[0, 1] > 0.9


def test_known_exposures_are_the_start(ball):
    folder, dataset = ball
    frames = [frame.model_copy(update={"gain": (2.0, 2.0, 3.0)}) for frame in dataset.frames[:6]] + dataset.frames[6:]
    gains = optimiser((folder, dataset.model_copy(update={"frames": frames})), iterations=1).gains()
    known = sum(frame.split == "train" for frame in frames[:6])
    torch.testing.assert_close(gains[0] / gains[-1], torch.tensor([2.0, 2.0, 3.0]))
    torch.testing.assert_close(gains.log().mean(dim=0), torch.zeros(3), rtol=0, atol=1e-6)
    assert len(gains[gains[:, 0] > 1]) == known


def test_a_view_that_does_not_fit_is_trusted_less(ball):
    fitted = optimiser(ball, iterations=60)
    fitted.views.images[5] = fitted.views.images[5].flip(1)  # mirrored: its colours fit nowhere
    fitted._half.images[5] = fitted._half.images[5].flip(1)
    for _ in fitted.run():
        pass
    assert fitted.trust[5] < 0.8
    assert fitted.trust.median() == 1


def test_a_black_ball_is_told_from_nothing_by_the_background_alone(tmp_path, monkeypatch):
    """The colours' loss is over a random background: where it is on the ball, or beyond it, it shows."""
    monkeypatch.setattr(photo_match, "WEIGHT_MASK", 0.0)
    monkeypatch.setattr(optimise, "match", photo_match.match_torch)  # the kernel has the constant compiled in
    dataset = write_dataset(tmp_path, camera_centres(18), heldout_every=0, color_of=np.zeros_like)
    fitted = optimiser((tmp_path, dataset), iterations=120, start="sphere", appearance="radiance")
    before = np.abs(np.linalg.norm(mesh_of(fitted).vertices - CENTRE, axis=1) - RADIUS).mean()
    for _ in fitted.run():
        pass
    after = np.abs(np.linalg.norm(mesh_of(fitted).vertices - CENTRE, axis=1) - RADIUS).mean()
    assert after < min(before / 2, 0.012)


def test_a_seed_repeats_and_another_does_not(ball):
    results = []
    for seed in (0, 0, 1):
        fitted = optimiser(ball, iterations=12, seed=seed)
        for _ in fitted.run():
            pass
        results.append(mesh_of(fitted).vertices)
    np.testing.assert_array_equal(results[0], results[1])
    assert results[0].shape != results[2].shape or np.abs(results[0] - results[2]).max() > 1e-6


def test_cameras_are_corrected_unless_poses_are_exact(ball):
    """A pose that is 0.36 pixels off comes back, since the others say where the ball is."""
    assert ReconstructConfig().refine_cameras
    folder, dataset = ball
    off = 0.008  # unit-frame lengths, at a distance of 2; a pixel is 0.022 wide there
    frames = [frame.model_copy(deep=True) for frame in dataset.frames]
    frames[7].camera_to_unit[0][3] += off * frames[7].camera_to_unit[0][0]
    frames[7].camera_to_unit[1][3] += off * frames[7].camera_to_unit[1][0]
    frames[7].camera_to_unit[2][3] += off * frames[7].camera_to_unit[2][0]
    moved = dataset.model_copy(update={"frames": frames})
    for refines in (True, False):
        fitted = optimiser((folder, moved), iterations=240, refine_cameras=refines)
        row = fitted.views.index.index(7)
        for _ in fitted.run():
            pass
        with torch.no_grad():
            clip = (fitted.clip_from_unit(row) @ torch.tensor([*CENTRE, 1.0], dtype=torch.float32)).numpy()
            true = inverse_rigid(np.array(dataset.frames[7].camera_to_unit)) @ [*CENTRE, 1.0]
        error = 32 * np.abs(clip[0] / clip[3] - true[0] * 2 * FOCAL_PER_SIDE / -true[2])  # pixels
        assert error < 0.2 if refines else error > 0.3


def test_pixels_beyond_the_photo_change_nothing(tmp_path):
    """What is painted into the part of some images that the photo does not cover has no effect, to the bit."""
    dataset = write_dataset(tmp_path, camera_centres(12), heldout_every=0)
    for frame in dataset.frames[:4]:
        frame.photo = PixelRectangle(left=30.5, top=0.0, right=64.0, bottom=64.0)
    config, results = ReconstructConfig(resolution=64, grid=16, iterations=60, appearance="flash"), []
    for paint in (0, 200):
        for frame in dataset.frames[:4]:
            for name in (frame.image, frame.mask):
                image = cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED)
                image[:, :30] = paint
                cv2.imwrite(str(tmp_path / name), image)
        views, _ = load_views(tmp_path, dataset, "train", 64)
        fitted = Optimiser(views, BOX, config, RASTERIZER)
        for _ in fitted.run():
            pass
        results.append(mesh_of(fitted).vertices)
    np.testing.assert_array_equal(*results)
    assert np.abs(np.linalg.norm(results[0] - CENTRE, axis=1) - RADIUS).max() < 0.1  # nothing is cut off


def test_a_loss_that_is_not_finite_names_the_frame(ball):
    fitted = optimiser(ball, iterations=60)
    with torch.no_grad():
        fitted.log_gain[:] = float("nan")
    with pytest.raises(ReconstructionError, match=r"nan at iteration 0, frame \d+"):
        fitted.step()


def test_a_surface_that_vanishes_is_no_result(ball):
    fitted = optimiser(ball, iterations=60)
    with torch.no_grad():
        fitted.surface.sdf.abs_()
    with pytest.raises(ReconstructionError, match="the surface vanished; check that the masks show the object"):
        fitted.step()


def test_masks_that_agree_on_nothing_are_refused(ball):
    folder, dataset = ball
    views, _ = load_views(folder, dataset, "train", 64)
    views.images[..., 3] = 0
    views.images[:, :4, :4, 3] = 255  # each camera sees something in its corner only
    with pytest.raises(ReconstructionError, match="agree on no point"):
        Optimiser(views, BOX, ReconstructConfig(resolution=64, grid=16), RASTERIZER)


@pytest.fixture
def surface():
    lattice = Lattice(np.full(3, -0.5), np.full(3, 0.5), 0.1)
    return Surface.from_distance(lattice, (np.linalg.norm(lattice.positions, axis=1) - 0.3).astype(np.float32))


def test_the_surface_stays_closed_when_it_is_pushed_to_the_rim(surface):
    """However far values are driven, the band's rim keeps its sign and the surface its closedness."""
    optimizer = torch.optim.Adam(surface.parameters(), lr=0.5)
    for step in range(30):
        if step % 10 == 9:
            surface.follow(optimizer)
        optimizer.zero_grad()
        torch.sin(surface.sdf * 40).sum().backward()
        surface.hold_rim()
        optimizer.step()
        mesh = surface.mesh()
        found = trimesh.Trimesh(mesh.vertices.detach().numpy(), mesh.faces.numpy(), process=False)
        edges = np.sort(found.edges, axis=1)
        assert (np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all()


def test_a_finer_grid_keeps_the_surface(surface):
    fine = surface.refined(0.05, np.full(3, -0.5), np.full(3, 0.5))
    vertices = fine.mesh().vertices.detach().numpy()
    coarse = surface.mesh()
    assert len(vertices) > 3 * len(coarse.vertices)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.3).max() < 0.02  # as flat as the coarse triangles


def test_bending_is_the_mean_squared_second_difference_along_the_grids_lines(surface):
    """Against a sum over all pairs of edges that meet head on at a point of the band."""
    random = np.random.default_rng(0)
    with torch.no_grad():
        surface.sdf += 0.1 * torch.from_numpy(random.normal(size=len(surface.sdf)).astype(np.float32))
        surface.offset += 0.1 * torch.from_numpy(random.normal(size=(len(surface.offset), 3)).astype(np.float32))
    points = surface.lattice.positions[surface.band.vertices].astype(float)
    values = torch.cat([surface.sdf[:, None], surface.offset], dim=1).detach().double().numpy()
    squares = []
    neighbours = [[] for _ in points]
    for a, b in surface.band.edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    for k, near in enumerate(neighbours):
        for i, a in enumerate(near):
            for b in near[i + 1 :]:
                if np.allclose(points[a] + points[b], 2 * points[k], atol=1e-5):
                    squares.append(((values[a] - 2 * values[k] + values[b]) ** 2).sum())
    loss = surface.bending_loss()
    assert float(loss.detach()) == pytest.approx(np.mean(squares), rel=1e-4)
    loss.backward()
    direction = random.normal(size=len(surface.sdf)).astype(np.float32)
    slope = float((surface.sdf.grad * torch.from_numpy(direction)).sum())
    energies = []
    for step in (0.5, -0.5):  # the loss is quadratic: central differences are exact
        with torch.no_grad():
            surface.sdf += step * torch.from_numpy(direction)
            energies.append(float(surface.bending_loss()))
            surface.sdf -= step * torch.from_numpy(direction)
    assert slope == pytest.approx(energies[0] - energies[1], rel=1e-3)


def test_a_plane_does_not_bend(surface):
    with torch.no_grad():
        surface.sdf[:] = torch.from_numpy(surface.lattice.positions[surface.band.vertices] @ np.float32([3, -2, 5]))
        surface.offset.zero_()
    assert float(surface.bending_loss().detach()) < 1e-6  # a random surface: about 10


def test_sign_loss_is_the_papers_cross_entropy():
    sdf = torch.tensor([-0.7, 0.4, 1.3, -0.2])
    edges = torch.tensor([[0, 1], [2, 3]])
    terms = []
    for a, b in edges.tolist():
        for own, other in ((sdf[a], sdf[b]), (sdf[b], sdf[a])):
            probability = torch.sigmoid(own)
            terms.append(-torch.log(probability if other > 0 else 1 - probability))
    torch.testing.assert_close(sign_loss(sdf, edges), torch.stack(terms).mean())
