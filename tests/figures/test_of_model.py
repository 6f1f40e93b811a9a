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
    assert (ax.get_xlabel(), ax.get_ylabel()) == scatter
    assert ax.get_title() == "sbn: latent probabilities of 9 test items"
    strip = of_model.interpolation(*trained, x[0], x[1], 3, name="sbn")
    assert strip.get_suptitle() == "sbn: interpolation between the latent probabilities of two test images"
    if latent == 2:
        (ax,) = of_model.latent_grid(*trained, x, name="sbn").axes
        assert (ax.get_xlabel(), ax.get_ylabel()) == scatter
        assert all(0 <= limit <= 1 for limit in (*ax.get_xlim(), *ax.get_ylim()))


def test_figures_of_other_latents_name_means():
    model = fv.models.burda_vae(latent=3)
    x = fv.random.bernoulli(fv.random.key(1), 0.5, (9, 1, 28, 28)).float()
    (ax,) = of_model.latent_scatter(model, *model.init(fv.random.key(0)), x, name="burda").axes
    assert (ax.get_xlabel(), ax.get_title()) == ("1st principal component of z", "burda: latent means of 9 test items")


def test_the_figures_of_a_run_show_the_names_of_its_classes():
    system, model = fv.models.SYSTEMS["burda_vae"], fv.models.burda_vae(latent=3)
    x = fv.random.bernoulli(fv.random.key(1), 0.5, (9, 1, 28, 28)).float()
    labels = torch.arange(9) % 2
    dataset = fv.data.Dataset("birds", x, x, labels, labels, ("owl", "wren"))
    trained = (model, *model.init(fv.random.key(0)))
    figures = fv.figures.of_results.of_run(*trained, system, dataset, x, fv.random.key(2))
    (legend,) = figures["latent_scatter"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["owl", "wren"]
