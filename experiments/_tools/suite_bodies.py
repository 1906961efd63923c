"""Bodies of networks of the suite beside plain ones: residual, attention over rows of an image, a small ResNet."""

import math

from torch import nn

WIDTH = 32
"""Of residual streams and tokens."""


def body(made, shape):
    """What maps inputs of a shape to features of ``made.dim``."""
    last = {"layer": [nn.LayerNorm(made.dim)], "rms": [nn.RMSNorm(made.dim)]}.get(made.norm, [])
    if made.body == "resnet":
        return resnet(made.dim)
    if made.body == "attention":
        return nn.Sequential(Tokens(shape), encoder(), Mean(), nn.Linear(WIDTH, made.dim), *last)
    start = [nn.Flatten(), nn.Linear(math.prod(shape), WIDTH)]
    return nn.Sequential(*start, Residual(), Residual(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, made.dim), *last)


def encoder():
    return nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)


class Residual(nn.Module):
    """h + MLP(norm(h)), as in a transformer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, h):
        return h + self.inner(h)


class Tokens(nn.Module):
    """The rows of an image as tokens, with learnt positions."""

    def __init__(self, shape):
        super().__init__()
        self.embed, self.place = nn.Linear(shape[-1], WIDTH), nn.Embedding(shape[-2], WIDTH)

    def forward(self, X):
        return self.embed(X[:, 0]) + self.place.weight


class Mean(nn.Module):
    """The mean over tokens."""

    def forward(self, tokens):
        return tokens.mean(1)


def convolution(before, after, stride):
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Block(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = convolution(channels, channels, 1), nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(channels), nn.ReLU()

    def forward(self, h):
        return self.act(h + self.norm(self.second(self.first(h))))


def resnet(dim):
    """Features of average pooling behind a ReLU."""
    return nn.Sequential(
        convolution(1, 12, 2), Block(12), convolution(12, dim, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
