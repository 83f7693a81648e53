"""Losses, averages, vocabularies and image grids."""

import numpy as np
import torch
from torch import nn

from latentdiff.images.image_grid import image_grid
from latentdiff.training.ema import EMA
from latentdiff.training.losses import PatchDiscriminator, contrastive_loss, discriminator_loss, gradient_loss
from latentdiff.training.tokenizer import train_tokenizer


def test_contrastive_loss_is_low_only_for_matching_pairs() -> None:
    text = torch.eye(4)
    scale = torch.tensor(5.0)
    assert contrastive_loss(text, 3 * text, scale) < 1e-6
    assert contrastive_loss(text, text.roll(1, 0), scale) > 10
    assert torch.allclose(contrastive_loss(torch.ones(4, 2), torch.ones(4, 2), scale), torch.tensor(4.0).log())


def test_gradient_loss_depends_on_edges_and_not_on_brightness() -> None:
    x = torch.rand(1, 3, 8, 8)
    assert gradient_loss(x, x + 0.5) < 1e-6
    edge = x.clone()
    edge[..., 4:] += 1
    # One of seven differences along each row is off by 1 at full size, one of three at half size.
    assert torch.allclose(gradient_loss(x, edge), torch.tensor(1 / 7 + 1 / 3), atol=1e-5)


def test_an_exponent_below_one_weighs_a_ripple_more_than_its_size() -> None:
    plain = torch.zeros(1, 1, 8, 8)
    step, ripple = plain.clone(), plain.clone()
    step[..., 4:] = 0.7
    ripple[..., 1::2] = 0.1  # both are 0.1 a pixel at full size; at half size the ripple is gone
    assert torch.allclose(gradient_loss(step, plain), torch.tensor(0.7 / 7 + 0.7 / 3), atol=1e-5)
    assert torch.allclose(gradient_loss(ripple, plain), torch.tensor(0.1), atol=1e-5)
    closed = (0.701**0.5 - 0.001**0.5) * (1 / 7 + 1 / 3), 0.101**0.5 - 0.001**0.5
    assert torch.allclose(gradient_loss(step, plain, 0.5), torch.tensor(closed[0]), atol=1e-5)
    assert torch.allclose(gradient_loss(ripple, plain, 0.5), torch.tensor(closed[1]), atol=1e-5)


def test_discriminator_loss_is_the_hinge() -> None:
    assert discriminator_loss(torch.tensor([2.0]), torch.tensor([-2.0])) == 0
    assert discriminator_loss(torch.tensor([0.5]), torch.tensor([0.0])) == 0.75
    assert PatchDiscriminator()(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 4, 4)


def test_ema_follows_its_formula_and_restores_the_weights() -> None:
    layer = nn.Linear(1, 1, bias=False)
    ema = EMA(layer, 0.5)
    expected = layer.weight.item()
    for update, value in enumerate([1.0, 2.0, 3.0, 4.0]):
        layer.weight.data.fill_(value)
        ema.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
    with ema.applied():
        assert abs(layer.weight.item() - expected) < 1e-6
    assert layer.weight.item() == 4.0


def test_any_text_can_be_encoded_with_a_trained_vocabulary() -> None:
    tokenizer = train_tokenizer(["a red apple", "红苹果"], 530, 16)
    for text in ("a red apple", "红苹果", "naïve café €5", "🚀"):
        assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == text.replace(" ", "")
    assert len(tokenizer.encode("红苹果")) < len("红苹果".encode())


def test_grid_places_pictures_in_rows() -> None:
    pixels = torch.stack([torch.full((3, 2, 2), v) for v in (-1.0, 0.0, 1.0)])
    sheet = np.asarray(image_grid(pixels, columns=2))
    assert sheet.shape == (4, 4, 3)
    assert (sheet[0, 0] == 0).all() and (sheet[0, 3] == 128).all() and (sheet[3] == 255).all()
