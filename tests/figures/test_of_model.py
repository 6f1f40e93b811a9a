import numpy as np
import pytest
import torch

import funcvae as fv
from funcvae.errors import BadValue
from funcvae.figures import of_model


def test_a_grid_needs_a_plane_and_images():
    x = fv.random.uniform(fv.random.key(1), (9, 1, 28, 28))
    burda = fv.models.burda_vae()
    with pytest.raises(BadValue, match="has Z = 50: a grid needs Z = 2"):
        of_model.latent_grid(burda, *burda.init(fv.random.key(0)), x, name="burda")
    points = fv.models.gaussian2d_vae()
    with pytest.raises(BadValue, match=r"the items have shape \[2\]: this figure needs images \[C, H, W\]"):
        of_model.latent_grid(points, *points.init(fv.random.key(0)), torch.zeros(9, 2), name="points")


def test_images_outside_the_unit_range_are_mapped_into_it(monkeypatch):
    shown = {}
    monkeypatch.setattr(
        "funcvae.figures.images.reconstructions", lambda x, x_hat, title: shown.update(x=x, x_hat=x_hat)
    )
    x = fv.random.uniform(fv.random.key(1), (3, 1, 28, 28))
    recipe, model = fv.models.SYSTEMS["mnist_bn_vae"].recipe, fv.models.mnist_bn_vae()
    seen = recipe.observe(fv.random.key(0), x)
    of_model.reconstructions(
        model, *model.init(fv.random.key(0)), seen, fv.random.key(1), pixels=recipe.pixels, name="bn"
    )
    torch.testing.assert_close(shown["x"], x)
    assert 0 <= shown["x_hat"].min() < shown["x_hat"].max() <= 1


@pytest.mark.parametrize(
    ("latent", "scatter"),
    [
        (2, ("q(z1 = 1|x)", "q(z2 = 1|x)")),
        (3, ("1st principal component of q(z = 1|x)", "2nd principal component of q(z = 1|x)")),
    ],
)
def test_figures_of_discrete_latents_name_probabilities(latent, scatter):
    model = fv.models.sbn_vae(latent=latent)
    trained = model, *model.init(fv.random.key(0))
    x = fv.random.bernoulli(fv.random.key(1), 0.5, (9, 1, 28, 28)).float()
    (ax,) = of_model.latent_scatter(*trained, x, name="sbn").axes
    assert [label.split(" (")[0] for label in (ax.get_xlabel(), ax.get_ylabel())] == [*scatter]
    assert ax.figure.get_suptitle() == "sbn: latent probabilities of 9 test items"
    strip = of_model.interpolation(*trained, x[0], x[1], 3, name="sbn")
    assert strip.get_suptitle() == "sbn\ninterpolation between the latent probabilities of two test images"
    if latent == 2:
        (ax,) = of_model.latent_grid(*trained, x, name="sbn").axes
        assert (ax.get_xlabel(), ax.get_ylabel()) == scatter
        assert all(0 <= limit <= 1 for limit in (*ax.get_xlim(), *ax.get_ylim()))


def test_figures_of_other_latents_name_means():
    model = fv.models.burda_vae(latent=3)
    x = fv.random.bernoulli(fv.random.key(1), 0.5, (9, 1, 28, 28)).float()
    (ax,) = of_model.latent_scatter(model, *model.init(fv.random.key(0)), x, name="burda").axes
    assert ax.get_xlabel().startswith("1st principal component of z (")
    assert ax.figure.get_suptitle() == "burda: latent means of 9 test items"


def test_the_figures_of_a_run_show_the_names_of_its_classes():
    system, model = fv.models.SYSTEMS["burda_vae"], fv.models.burda_vae(latent=3)
    x = fv.random.bernoulli(fv.random.key(1), 0.5, (9, 1, 28, 28)).float()
    labels = torch.arange(9) % 2
    dataset = fv.data.Dataset("birds", x, x, labels, labels, ("owl", "wren"))
    trained = (model, *model.init(fv.random.key(0)))
    figures = fv.figures.of_results.of_run(*trained, system, dataset, x, fv.random.key(2))
    _, legend = figures["latent_scatter"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["owl", "wren"]


class Joined(torch.nn.Linear):
    """A linear layer of all its arguments beside each other; a dict's tensors are such arguments."""

    def forward(self, *parts):
        parts = [each for part in parts for each in (part.values() if isinstance(part, dict) else [part])]
        return super().forward(torch.cat([part.float().reshape(len(part), -1) for part in parts], 1))


def of_points(shape, conditional=False):
    """A model of points [n, *shape], and its class."""
    options = {"modelled": lambda data: data["x"], "condition": lambda data: data["y"]} if conditional else {}
    return fv.vae(
        encoder=lambda: Joined(shape[0] + conditional, 4), decoder=lambda: Joined(2 + conditional, shape[0]), latent=2,
        posterior=lambda out: fv.heads.normal_logvar(out.chunk(2, -1)), likelihood=fv.heads.normal_fixed(1.0),
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["streamed", "conditional", "ten numbers"])
def test_the_figures_of_a_run_on_other_data_than_images(tmp_path, kind):
    points = fv.random.normal(fv.random.key(1), (40, 10 if kind == "ten numbers" else 2))
    labels = torch.arange(40) % 3
    dataset = fv.data.Dataset("points", points, points[:20], labels, labels[:20])
    model, x = of_points(points.shape[1:], kind == "conditional"), points[:20]
    if kind == "streamed":
        np.save(tmp_path / "points.npy", points.numpy())
        dataset = fv.data.stream(tmp_path / "points.npy")
        x = dataset.test[:4]
        made = fv.figures.of_results.evolution(x.expand(3, 4, 2), dataset, name="points")
        assert made.axes
    elif kind == "conditional":
        dataset, x = dataset.labelled(), {"x": x, "y": labels[:20]}
    system = fv.models.SYSTEMS["gaussian2d_vae"]
    found = fv.figures.of_results.of_run(model, *model.init(fv.random.key(0)), system, dataset, x, fv.random.key(2))
    assert list(found) == (["latent_scatter"] if kind == "ten numbers" else ["latent_scatter", "densities"])


class _Shifted(torch.nn.Module):
    """Encodes x [n, 3] to a normal with mean x + 1."""

    def forward(self, x):
        return x + 1, torch.zeros_like(x)


def shifted(**options):
    return fv.vae(encoder=_Shifted, decoder=lambda: torch.nn.Linear(3, 3), latent=3,
                  likelihood=fv.heads.normal_fixed(0.25), **options)  # fmt: skip


def test_a_scatter_of_components_has_the_projected_prior_and_shares_of_the_variance():
    model = shifted()
    x = fv.random.normal(fv.random.key(1), (4000, 3)) * torch.tensor([3.0, 2.0, 1.0])
    ax = of_model.latent_scatter(model, *model.init(fv.random.key(0)), x).axes[0]
    assert ax.get_title() == ""
    assert ax.figure.get_suptitle() == "Latent means of 4,000 test items"
    assert [float(f"0.{label.split('(')[1][:2]}") for label in (ax.get_xlabel(), ax.get_ylabel())] == pytest.approx(
        [9 / 14, 4 / 14], abs=0.02
    )
    # The data's mean is (1, 1, 1), so the prior's is -1 along both axes, up to the sign of a component.
    for radius, line in zip((1, 2), ax.lines, strict=True):
        centre = line.get_xydata()[:-1].mean(0)
        assert np.abs(centre) == pytest.approx([1, 1], abs=0.2)
        assert np.hypot(*(line.get_xydata() - centre).T) == pytest.approx(radius)


@pytest.mark.parametrize(
    "options", [{"posterior": lambda out: fv.heads.delta(out[0])}, {"prior": fv.priors.mixture(2, 3)}]
)
def test_a_scatter_has_no_circles_without_a_standard_normal_prior(options):
    model = shifted(**options)
    x = fv.random.normal(fv.random.key(1), (9, 3))
    assert not of_model.latent_scatter(model, *model.init(fv.random.key(0)), x).axes[0].lines


def test_a_traversal_has_the_latents_with_the_highest_kl():
    model = fv.models.mnist_sigma_vae(latent=5)
    trained = (model, *model.init(fv.random.key(0)))
    x = fv.random.uniform(fv.random.key(1), (9, 1, 28, 28))
    kl = fv.evaluate.kl_per_dimension(*trained, x)
    (ax,) = of_model.latent_traversal(*trained, x, rows=3, span=(-2, 2), n=5, name="sigma").axes
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == [f"z{u + 1} (KL {kl[u]:.2g} nats)" for u in kl.argsort(descending=True)[:3].tolist()]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["−2", "−1", "0", "1", "2"]


def test_draws_of_a_fixed_sigma_have_it_in_the_title():
    key, titles = fv.random.key(0), {}
    for name in ("mnist_vae", "burda_vae"):
        model = getattr(fv.models, name)()
        titles[name] = [
            of_model.image_samples(model, *model.init(key), key, 4, drawn=drawn).get_suptitle()
            for drawn in (False, True)
        ]
    means = "Means of p(x|z) for samples z of the prior"
    assert titles["mnist_vae"] == [means, "Images drawn from p(x|z): noise of σ = 0.71 in every pixel"]
    assert titles["burda_vae"] == [means, "Images drawn from p(x|z)"]


def test_reconstructions_name_their_source():
    model = fv.models.mnist_vae()
    trained = (model, *model.init(fv.random.key(0)))
    x = fv.random.uniform(fv.random.key(1), (3, 1, 28, 28))
    for key, source in ((None, "the mean of q(z|x)"), (fv.random.key(2), "a draw of q(z|x)")):
        title = of_model.reconstructions(*trained, x, key).get_suptitle()
        assert title == f"Test images, each reconstructed from {source}"


def test_rows_by_class_have_the_items_of_each_class():
    labels = torch.tensor([2, 0, 2, 0, 0, 5, 1])
    dataset = fv.data.Dataset("d", labels, labels, labels, labels)
    items, names = of_model.rows_by_class(dataset, 9, 6)
    assert names == ["class 0", "class 2", "class 5"]
    assert items.tolist() == [1, 3, 4, 0, 2, 0, 5, 5, 5]
    assert of_model.item_name(dataset, 5) == "test item 5\nclass 5"
    named = dataset._replace(classes=tuple("abcdef"))
    assert of_model.rows_by_class(named, 9, 6)[1] == ["a", "c", "f"]
    assert of_model.item_name(named, 5) == "test item 5\nf"
    unlabelled = dataset._replace(test_labels=None)
    assert of_model.rows_by_class(unlabelled, 3, 6)[0].tolist() == [0, 1, 2]
    assert of_model.item_name(unlabelled, 5) == "test item 5"
