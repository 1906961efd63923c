"""Networks of the experiments that the package does not bring; used as ``network="experiments.nets:NAME"``."""

from itertools import chain, pairwise

import torch
from safetensors.torch import load_file
from torch import nn

from collapsekit.training.models import Classifier, cnn, mlp


def tiny_eps_mlp(input_shape, num_classes):
    """The BatchNorm MLP 128-128-512 with eps = 1e-12 in place of 1e-5."""
    model = mlp(int(torch.Size(input_shape).numel()), (128, 128), 512, num_classes, batchnorm=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 1e-12
    return model


def pooled_cnn(input_shape, num_classes):
    """Two convolutions of 32 and 128 channels with BatchNorm; features are averaged over positions after the ReLU."""
    last = nn.BatchNorm2d(128)
    body = nn.Sequential(
        nn.Conv2d(input_shape[0], 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 128, 3, padding=1, bias=False),
        last,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Classifier(body, nn.Linear(128, num_classes, bias=False), [last], pooled=True)


class Shifted(nn.Module):
    """Augmentation: in training each sample is flipped at random and moved by up to two pixels."""

    def forward(self, inputs):
        """Return the batch, changed in training only."""
        if not self.training:
            return inputs
        flipped = torch.rand(len(inputs), 1, 1, 1) < 0.5
        inputs = torch.where(flipped, inputs.flip(3), inputs)
        down, right = torch.randint(-2, 3, (2,)).tolist()
        return inputs.roll((down, right), (2, 3))


class Augmented(nn.Module):
    """A network of the package behind augmentation."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.shift, self.model = Shifted(), model
        self.feature_batchnorms = model.feature_batchnorms

    def forward(self, inputs):
        """Return logits, (n, K)."""
        return self.model(self.shift(inputs))


def everyday_cnn(input_shape, num_classes):
    """The small BatchNorm CNN as it is used every day: a bias in the head, flips and shifts in training."""
    model = cnn(input_shape, 16, 128, num_classes, batchnorm=True)
    model.head = nn.Linear(128, num_classes)
    return Augmented(model)


def biased_cnn(input_shape, num_classes):
    """The same without augmentation."""
    return everyday_cnn(input_shape, num_classes).model


def plain_cnn(input_shape, num_classes):
    """The same without augmentation and without the bias."""
    return cnn(input_shape, 16, 128, num_classes, batchnorm=True)


def learned_mlp(input_shape, num_classes):
    """The network from which experiments/horizon.py trains on, of the seed that torch was given."""
    model = mlp(int(torch.Size(input_shape).numel()), (64,), 128, num_classes, batchnorm=True)
    model.load_state_dict(load_file(f"experiments/data/learned/{torch.initial_seed()}.safetensors"))
    return model


def lost_mlp(input_shape, num_classes):
    """A network that has lost classes, as experiments/revival.py trained it, of the seed that torch was given."""
    model = mlp(int(torch.Size(input_shape).numel()), (128, 128), 512, num_classes)
    model.load_state_dict(load_file(f"experiments/data/lost/{torch.initial_seed()}.safetensors"))
    return model


def lost_mlp_new_head(input_shape, num_classes):
    """The same with its head drawn anew."""
    model = lost_mlp(input_shape, num_classes)
    model.head.reset_parameters()
    return model


def lost_mlp_new_last_layer(input_shape, num_classes):
    """The same with the layer that makes the features drawn anew as well."""
    model = lost_mlp_new_head(input_shape, num_classes)
    model.body[-2].reset_parameters()
    return model


class Words(nn.Module):
    """One transformer layer over token numbers (n, length), 0 for nothing; mean pooling, a linear layer and ReLU."""

    def __init__(self, vocabulary: int, length: int, dim: int, feature_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim, padding_idx=0)
        self.position = nn.Parameter(0.02 * torch.randn(length, dim))
        self.layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.last = nn.Linear(dim, feature_dim)

    def forward(self, inputs):
        """Return features, (n, feature_dim)."""
        tokens = inputs.long()
        seen = (tokens > 0).unsqueeze(2).float()
        hidden = self.layer(self.embedding(tokens) + self.position, src_key_padding_mask=tokens == 0)
        return torch.relu(self.last((hidden * seen).sum(1) / seen.sum(1).clamp(min=1)))


def text_transformer(input_shape, num_classes):
    """A transformer layer of width 64 over token numbers, 512 ReLU features, bias-free head."""
    return Classifier(Words(2001, input_shape[0], 64, 512), nn.Linear(512, num_classes, bias=False))


def biased_mlp(input_shape, num_classes):
    """The MLP 128-128-512 with a bias in its head, as `torch.nn.Linear` makes it."""
    return with_bias(mlp(int(torch.Size(input_shape).numel()), (128, 128), 512, num_classes))


def biased_batchnorm_mlp(input_shape, num_classes):
    """The same with BatchNorm before every ReLU."""
    return with_bias(mlp(int(torch.Size(input_shape).numel()), (128, 128), 512, num_classes, batchnorm=True))


def with_bias(model):
    """The network with a head of torch's own initialisation, bias included."""
    model.head = nn.Linear(model.head.in_features, model.head.out_features)
    return model


def layernorm_mlp(input_shape, num_classes):
    """An MLP 128-128-512 with LayerNorm and GELU after every layer and a bias in its head: features of both signs."""
    widths = [int(torch.Size(input_shape).numel()), 128, 128, 512]
    layers = [(nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()) for before, after in pairwise(widths)]
    return Classifier(nn.Sequential(nn.Flatten(), *chain(*layers)), nn.Linear(512, num_classes))
