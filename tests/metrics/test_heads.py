"""Which layer is the head, on real networks of every kind; what is no linear head is refused by name."""

import warnings
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from _support import metric_oracles as oracle
from _support.tolerances import EXACT, FLOAT32, METRICS
from collapsekit import CollapseError
from collapsekit.metrics import measure, measure_features
from collapsekit.metrics.last_layer import find_head, forward

K = 4
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 0])
N = len(LABELS)


class Wrapped(nn.Module):
    """Features of a ReLU layer, a head, and whatever `form` makes of features and logits."""

    def __init__(self, head=None, form=lambda features, logits: logits):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.head = nn.Linear(8, K, bias=False) if head is None else head
        self.form = form

    def forward(self, inputs):
        features = self.body(inputs)
        return self.form(features, self.head(features))


class Positions(nn.Module):
    """A head applied at every position; `reduce` makes logits of its outputs."""

    def __init__(self, body, head, reduce):
        super().__init__()
        self.body, self.head, self.reduce = body, head, reduce

    def forward(self, inputs, mask=None):
        logits = self.head(torch.relu(self.body(inputs)))
        return self.reduce(logits) if mask is None else self.reduce(logits, mask)


class TextTransformer(nn.Module):
    """Tokens and a mask (True where padded): encoder, mean over tokens, ReLU feature layer, linear head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.features = nn.Sequential(nn.Linear(16, 12), nn.ReLU())
        self.classifier = nn.Linear(12, K)

    def pooled(self, tokens, padded):
        encoded = self.encoder(self.embed(tokens), src_key_padding_mask=padded)
        kept = (~padded)[..., None].to(encoded.dtype)
        return self.features((encoded * kept).sum(dim=1) / kept.sum(dim=1))

    def forward(self, tokens, padded):
        return self.classifier(self.pooled(tokens, padded))


def batch(seed=0, shape=(N, 5), dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype), LABELS


def texts(size, seed):
    """Token sequences of different lengths and where they are padded."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 20, (size, 6), generator=generator)
    padded = torch.arange(6) >= torch.randint(2, 7, (size, 1), generator=generator)
    return tokens.masked_fill(padded, 0), padded


def assert_measures(measured, features, labels, weight, bias=None):
    """Against the features, labels and head that the test itself has computed."""
    features, weight = features.detach().double().numpy(), weight.detach().double().numpy()
    labels = np.asarray(labels)
    logits = features @ weight.T + (0 if bias is None else bias.detach().double().numpy())
    oracle.assert_moments(measured.moments, features, labels, FLOAT32)
    assert_allclose(measured.weight, weight, rtol=EXACT)
    assert (measured.bias is None) == (bias is None)
    confidences, losses, _ = oracle.softmax_table(logits, labels, len(weight))
    assert_allclose(measured.confidences, confidences, rtol=FLOAT32)
    assert_allclose(measured.losses, losses, rtol=FLOAT32)


def assert_same(first, second, rtol=METRICS):
    assert_allclose(first.moments.state, second.moments.state, rtol=rtol, atol=rtol)
    for key, values in second.per_class().items():
        assert_allclose(first.per_class()[key], values, rtol=rtol, atol=rtol, err_msg=key)


def test_the_checks_reject_another_head():
    model, (inputs, labels) = Wrapped(), batch()
    measured = measure(model, [(inputs, labels)])
    features = model.body(inputs)
    assert_measures(measured, features, labels, model.head.weight)
    for wrong in ((2 * features, model.head.weight), (features, model.head.weight.flip(0))):
        with pytest.raises(AssertionError):
            assert_measures(measured, wrong[0], labels, wrong[1])
    with pytest.raises(AssertionError):
        assert_same(measured, measure(Wrapped(), [(inputs, labels)]))


# where the logits are

FORMS = {
    "tensor": lambda features, logits: logits,
    "copy": lambda features, logits: logits.clone(),
    "other precision": lambda features, logits: logits.double(),
    "logits first": lambda features, logits: (logits, features),
    "features first": lambda features, logits: (features, logits),
    "list": lambda features, logits: [logits, [features]],
    "loss first": lambda features, logits: (logits.sum(), logits),
    "dict": lambda features, logits: {"features": features, "logits": logits},
    "object": lambda features, logits: SimpleNamespace(features=features, logits=logits),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", [None, "head", "module"])
def test_outputs_of_every_form(form, name):
    model, (inputs, labels) = Wrapped(form=form), batch()
    measured = measure(model, [(inputs, labels)], model.head if name == "module" else name)
    assert_measures(measured, model.body(inputs), labels, model.head.weight)


def test_logits_of_two_linear_layers_are_ambiguous():
    model, (inputs, labels) = Wrapped(), batch()
    model.embed = nn.Linear(8, 6)
    model.form = lambda features, logits: (model.embed(features), logits)
    with pytest.raises(CollapseError, match=r"head=None: .*'head'.*'embed'|head=None: .*'embed'.*'head'"):
        measure(model, [(inputs, labels)])
    assert_measures(measure(model, [(inputs, labels)], "head"), model.body(inputs), labels, model.head.weight)


def test_a_mapping_without_logits_asks_for_a_name():
    model, (inputs, labels) = Wrapped(form=lambda features, logits: {"pred": logits}), batch()
    with pytest.raises(CollapseError, match=r"returns a dict without logits; name the head, one of .*'head'"):
        measure(model, [(inputs, labels)])
    measure(model, [(inputs, labels)], "head")


def test_heads_by_every_name():
    body = OrderedDict(flat=nn.Flatten(), dense=nn.Linear(5, 8), relu=nn.ReLU())
    model = nn.Sequential(OrderedDict(body, head=nn.Sequential(OrderedDict(drop=nn.Dropout(), out=nn.Linear(8, K)))))
    inputs, labels = batch()
    for name in (None, "head", "head.out", model.head, model.head.out, model):
        if name is not model:
            assert find_head(model, name, inputs).module is model.head.out
            assert find_head(model, name, inputs).name == "head.out"
        measured = measure(model, [(inputs, labels)], None if name is model else name)
        assert_measures(measured, model[:3](inputs), labels, model.head.out.weight, model.head.out.bias)
    plain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, K))
    assert find_head(plain, plain, inputs).name == find_head(plain, "", inputs).name == "2"
    alone = nn.Linear(5, K)
    for name in (None, "", alone):
        assert find_head(alone, name, inputs).module is alone


def test_a_head_with_two_names():
    model, (inputs, labels) = Wrapped(), batch()
    model.classifier = model.head
    for name in (None, "head", "classifier", model.classifier):
        assert_measures(measure(model, [(inputs, labels)], name), model.body(inputs), labels, model.head.weight)


def test_a_lazy_head():
    model, (inputs, labels) = Wrapped(nn.LazyLinear(K, bias=False)), batch()
    measured = measure(model, [(inputs, labels)])
    assert_measures(measured, model.body(inputs), labels, model.head.weight)


def test_zero_heads_and_wrapped_networks():
    model, (inputs, labels) = Wrapped(form=lambda features, logits: {"logits": logits.clone()}), batch()
    nn.init.zeros_(model.head.weight)
    assert_allclose(measure(model, [(inputs, labels)]).confidences, 1 / K, rtol=EXACT)
    whole = nn.DataParallel(Wrapped())
    assert find_head(whole, None, inputs).name == "module.head"


def test_an_embedding_is_no_head():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.out = nn.Embedding(K, 8), nn.Linear(8, 8), nn.Linear(8, K, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens):
            return self.out(torch.relu(self.mix(self.embed(tokens).mean(dim=1))))

    model, tokens = Tied(), torch.randint(0, K, (N, 3))
    features = torch.relu(model.mix(model.embed(tokens).mean(dim=1)))
    for name in (None, "out"):
        assert_measures(measure(model, [(tokens, LABELS)], name), features, LABELS, model.embed.weight)
    with pytest.raises(CollapseError, match=r"head='embed': is a Embedding, .*one of 'mix', 'out'"):
        measure(model, [(tokens, LABELS)], "embed")
    bag = nn.Sequential(nn.EmbeddingBag(9, K))  # rows are words, not classes
    with pytest.raises(CollapseError, match="head"):
        measure(bag, [(tokens, LABELS)])


# networks of users


def test_an_image_network_of_transformers():
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=K
    )
    model = ResNetForImageClassification(config)
    images, labels = batch(shape=(N, 1, 16, 16))
    batches = [{"pixel_values": images[:4], "labels": labels[:4]}, {"pixel_values": images[4:], "labels": labels[4:]}]
    model.eval()
    with torch.no_grad():
        features = model.resnet(images).pooler_output.flatten(1)
    model.train()
    layer = model.classifier[-1]
    for head in (None, "classifier", "classifier.1", layer):
        measured = measure(model, batches, head)
        assert_measures(measured, features, labels, layer.weight, layer.bias)
    assert measured.nonnegative
    assert model.training
    renamed = [{"pixel_values": b["pixel_values"], "label": b["labels"]} for b in batches]
    assert_same(measure(model, renamed), measured)


def test_a_text_network_of_transformers():
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=K,
    )
    model = BertForSequenceClassification(config).eval()
    tokens, padded = texts(N, 1)
    inputs = {"input_ids": tokens, "attention_mask": (~padded).long()}
    with torch.no_grad():
        features = model.bert(**inputs).pooler_output
    measured = measure(model, [inputs | {"labels": LABELS.numpy()}])
    assert_measures(measured, features, LABELS, model.classifier.weight, model.classifier.bias)
    assert measured.nonnegative is False  # tanh
    as_tuple = measure(model, [inputs | {"labels": LABELS, "return_dict": False}])
    assert_same(as_tuple, measured)


def test_a_text_transformer_with_tuples_of_inputs():
    model = TextTransformer()
    sizes = (4, 3)
    inputs = [texts(size, seed) for seed, size in enumerate(sizes)]
    model.eval()
    with torch.no_grad():
        features = torch.cat([model.pooled(*one) for one in inputs])
    model.train()
    for form in (tuple, list):
        measured = measure(model, [(form(one), y) for one, y in zip(inputs, LABELS.split(sizes), strict=True)])
        assert_measures(measured, features, LABELS, model.classifier.weight, model.classifier.bias)
    assert measured.nonnegative
    assert find_head(model, None, inputs[0]).name == "classifier"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("normalise", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm], ids=["new", "old"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_normalised_head_is_its_effective_weight(normalise, bias):
    layer = nn.Linear(8, K, bias=bias)
    model, (inputs, labels) = Wrapped(normalise(layer)), batch()
    with torch.no_grad():  # as after some steps: lengths and directions apart
        for name, parameter in model.head.named_parameters():
            if "weight" in name:
                parameter.mul_(torch.rand(len(parameter), 1) + 0.5)
    model(inputs)
    effective = nn.Linear(8, K, bias=bias)
    with torch.no_grad():
        effective.weight.copy_(model.head.weight)
        if bias:
            effective.bias.copy_(layer.bias)
    plain = Wrapped(effective)
    plain.body = model.body
    for name in (None, "head"):
        assert_same(measure(model, [(inputs, labels)], name), measure(plain, [(inputs, labels)]), FLOAT32)
    head = find_head(model, None, inputs)
    features, _ = forward(model, head, inputs)
    (0.5 * head.weight.square().sum() + features.sum()).backward()
    own = [p for name, p in model.head.named_parameters() if "weight" in name]
    assert len(own) == 2
    assert all(p.grad is not None for p in own)


# heads at every position

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [None, "head"])
def test_a_convolution_before_the_mean_over_positions(ndim, dtype, name):
    conv = CONVOLUTIONS[ndim]
    model = Positions(conv(2, 8, 3, padding=1), conv(8, K, 1), lambda z: z.flatten(2).mean(dim=2)).to(dtype)
    images, labels = batch(shape=(N, 2, *[16 if ndim < 3 else 6] * ndim), dtype=dtype)
    with torch.no_grad():
        features = torch.relu(model.body(images)).flatten(2).mean(dim=2)
    measured = measure(model, [(images[:3], labels[:3]), (images[3:], labels[3:])], name)
    if dtype == torch.bfloat16:
        oracle.assert_moments(measured.moments, features.double().numpy(), labels.numpy(), METRICS)
    else:
        assert_measures(measured, features, labels, model.head.weight.flatten(1), model.head.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_convolution_over_large_maps(dtype):
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Positions(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, K, 1), pool).to(dtype)
    assert find_head(model, None, torch.randn(3, 1, 100, 100, dtype=dtype)).name == "head"


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)], ids=["tokens", "channels last"])
@pytest.mark.parametrize("name", [None, "head"])
def test_a_linear_layer_at_every_position_before_their_mean(shape, name):
    model = Positions(nn.Linear(5, 8), nn.Linear(8, K, bias=False), lambda z: z.flatten(1, -2).mean(dim=1))
    inputs, labels = batch(shape=(N, *shape))
    features = torch.relu(model.body(inputs)).flatten(1, -2).mean(dim=1)
    assert_measures(measure(model, [(inputs, labels)], name), features, labels, model.head.weight)


UNAVERAGED = {
    "first": lambda z: z[:, 0],
    "maximum": lambda z: z.amax(dim=1),
    "all": lambda z: z,
    "sum": lambda z: z.sum(1),
}


@pytest.mark.parametrize("reduce", UNAVERAGED.values(), ids=UNAVERAGED)
def test_positions_that_are_not_averaged_are_refused(reduce):
    model = Positions(nn.Linear(5, 8), nn.Linear(8, K), reduce)
    is_output = reduce(torch.ones(1, 6, 4)).ndim == 3
    why = (
        "is applied at every position, output" if is_output else r"its W h \+ b, \(7, 6, 4\), is not the model's output"
    )
    with pytest.raises(CollapseError, match=f"head='head': {why}"):
        measure(model, [batch(shape=(N, 6, 5))], "head")
    with pytest.raises(CollapseError, match=f"head='head': {why}" if is_output else "head=None: .*'head'"):
        measure(model, [batch(shape=(N, 6, 5))])


def test_a_masked_mean_is_refused_in_the_first_batch_that_shows_it():
    model = Positions(nn.Linear(5, 8), nn.Linear(8, K), lambda z, keep: (z * keep).sum(dim=1) / keep.sum(dim=1))
    inputs, labels = batch(shape=(N, 6, 5))
    full, padded = torch.ones(7, 6, 1), torch.ones(7, 6, 1)
    padded[2, 3:] = 0
    whole = measure(model, [((inputs, full), labels)])
    assert_allclose(whole.counts, torch.bincount(labels))
    for name in (None, "head"):
        with pytest.raises(CollapseError, match=r"batch 1: head='head': .* is not the model's output"):
            measure(model, [((inputs, full), labels), ((inputs, padded), labels)], name)


# heads that are not linear


class NormedLinear(nn.Module):
    """The cosine head of LDAM-DRW: weight (d, K)."""

    def __init__(self, dim, num_classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, num_classes))

    def forward(self, x):
        return nn.functional.normalize(x, dim=1).mm(nn.functional.normalize(self.weight, dim=0))


class Cosine(nn.Linear):
    scale = 16.0

    def forward(self, x):
        return self.scale * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


class Scaled(nn.Linear):
    def forward(self, x):
        return 30 * super().forward(x)


class Squashed(nn.Linear):
    def forward(self, x):
        return super().forward(x).tanh()


class WeightNormalised(nn.Linear):
    """Unit rows: half a cosine head."""

    def forward(self, x):
        return nn.functional.linear(x, nn.functional.normalize(self.weight))


NONLINEAR = {
    "transposed cosine": (NormedLinear(8, K), "a NormedLinear, a cosine head"),
    "square transposed cosine": (nn.Sequential(nn.Linear(8, K), nn.ReLU(), NormedLinear(K, K)), "a cosine head"),
    "cosine": (Cosine(8, K, bias=False), "a Cosine, a cosine head"),
    "scaled": (Scaled(8, K), r"a Scaled, a scaled head, 30 times W h \+ b"),
    "squashed": (Squashed(8, K), "a Squashed, a linear layer with a tanh behind it"),
    "unit rows": (WeightNormalised(8, K, bias=False), "a WeightNormalised, a head that normalises its weights"),
}


@pytest.mark.parametrize(("head", "fragment"), NONLINEAR.values(), ids=NONLINEAR)
@pytest.mark.parametrize("name", [None, "head"])
def test_heads_that_are_not_linear_are_refused(head, fragment, name):
    model = Wrapped(head)
    with pytest.raises(CollapseError, match=fragment):
        measure(model, [batch()], name)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


def test_logits_scaled_outside_the_head_are_refused_and_the_remedy_works():
    model, (inputs, labels) = Wrapped(form=lambda features, logits: 30 * logits), batch()
    for name, fragment in (
        (None, r"head=None: .*merge .*'head'"),
        ("head", r"head='head': .*not the model's output.*merge"),
    ):
        with pytest.raises(CollapseError, match=fragment):
            measure(model, [(inputs, labels)], name)
    stored = measure_features(model.body(inputs), labels, 30 * model.head.weight)
    model.form = FORMS["tensor"]  # merged
    with torch.no_grad():
        model.head.weight.mul_(30)
    assert_same(measure(model, [(inputs, labels)]), stored, FLOAT32)


@pytest.mark.parametrize("squash", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1)], ids=["softmax", "log-softmax"])
@pytest.mark.parametrize("name", [None, "head"])
def test_what_softmax_makes_of_the_logits_is_as_good(squash, name):
    model, (inputs, labels) = Wrapped(form=lambda features, logits: squash(logits)), batch()
    assert_measures(measure(model, [(inputs, labels)], name), model.body(inputs), labels, model.head.weight)


@pytest.mark.parametrize("squeeze", [True, False])
@pytest.mark.parametrize("name", [None, "head"])
def test_a_single_logit_is_refused(squeeze, name):
    model = Wrapped(nn.Linear(8, 1), lambda features, logits: logits.squeeze(1) if squeeze else logits)
    with pytest.raises(CollapseError, match=r"head='head': a single logit; .*nn.Linear\(d, 2\)"):
        measure(model, [(batch()[0], LABELS % 2)], name)


def test_reduced_precision_of_products_is_no_other_head(monkeypatch):
    class Rounded(nn.Linear):  # what TF32 and bfloat16 products do to float32
        def forward(self, x):
            return super().forward(x.bfloat16().float())

    model = Wrapped(Rounded(8, K))
    with pytest.raises(CollapseError, match="not W h"):
        measure(model, [batch()])
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    measure(model, [batch()])
    with pytest.raises(CollapseError, match="a scaled head, 30 times"):
        measure(Wrapped(Scaled(8, K)), [batch()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [None, "head"])
def test_short_floating_types(dtype, name):
    model, (inputs, labels) = Wrapped(form=lambda features, logits: logits.float()).to(dtype), batch(dtype=dtype)
    with torch.no_grad():
        features = model.body(inputs)
    measured = measure(model, [(inputs, labels)], name)
    oracle.assert_moments(measured.moments, features.double().numpy(), labels.numpy(), METRICS)
    with pytest.raises(CollapseError, match="a cosine head"):
        measure(Wrapped(Cosine(8, K, bias=False)).to(dtype), [(inputs, labels)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measure(Wrapped(), [batch()], name)


# labels

KINDS = {
    "list": LABELS.tolist(),
    "tuple": tuple(LABELS.tolist()),
    "numpy": LABELS.numpy(),
    "int32": LABELS.int(),
    "uint8": LABELS.byte(),
    "numpy uint16": LABELS.numpy().astype("uint16"),
    "numpy, reversed": LABELS.flip(0).numpy()[::-1],
    "numpy, read-only": np.frombuffer(LABELS.numpy().tobytes(), np.int64),
}


@pytest.mark.parametrize("labels", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("form", ["pair", "labels", "label"])
def test_labels_of_every_kind(labels, form):
    model, (inputs, _) = Wrapped(), batch()
    if form != "pair":
        model.forward = lambda image: model.head(model.body(image))
    given = (inputs, labels) if form == "pair" else {"image": inputs, form: labels}
    with warnings.catch_warnings():
        torch.set_warn_always(True)
        try:
            measured = measure(model, [given])
        finally:
            torch.set_warn_always(False)
    assert_measures(measured, model.body(inputs), LABELS, model.head.weight)


@pytest.mark.parametrize(
    ("labels", "fragment"),
    [
        (nn.functional.one_hot(LABELS), r"labels: shape \(7, 4\), one-hot rows.*argmax"),
        (nn.functional.one_hot(LABELS).double().numpy(), "one-hot rows"),
        (torch.ones(7, K), "several labels a sample"),
        (torch.softmax(torch.randn(7, K), 1), "several labels a sample"),
        (LABELS[:, None], r"labels: shape \(7, 1\)"),
        (LABELS.double(), "labels: dtype torch.float64"),
        (["cat"] * 7, "one class number a sample"),
        (None, "one class number a sample"),
        (LABELS + 1, "has label 4"),
        (LABELS - 1, "has label -1"),
    ],
    ids=["one-hot", "one-hot numpy", "many", "soft", "column", "float", "words", "none", "above", "below"],
)
def test_labels_that_are_no_class_numbers(labels, fragment):
    with pytest.raises(CollapseError, match=fragment):
        measure(Wrapped(), [(batch()[0], labels)])


# later batches, hooks, gradients


def test_mistakes_of_a_later_batch_are_named():
    model, (inputs, labels) = Wrapped(), batch()
    broken = inputs.clone()
    broken[3, 2] = torch.nan
    for bad, fragment in (
        ((inputs, labels + 1), "label 4"),
        ((broken, labels), "sample 3"),
        ((inputs, labels[:6]), ""),
    ):
        with pytest.raises(CollapseError, match=f"batch 2: .*{fragment}"):
            measure(model, [(inputs, labels), (inputs, labels), bad])
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_and_modes_are_left_as_they_were():
    model, (inputs, labels) = Wrapped(nn.Sequential(nn.Dropout(), nn.Linear(8, K))), batch()
    model.body.eval()
    calls = []
    own = model.head.register_forward_hook(lambda *_: calls.append(1))
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = torch.get_rng_state()

    def assert_unchanged():
        assert [module.training for module in model.modules()] == modes
        assert list(model.head._forward_hooks.values()) == [model.head._forward_hooks[own.id]]
        assert sum(len(module._forward_hooks) for module in model.modules()) == 1
        for key, value in model.state_dict().items():
            assert_array_equal(value, state[key])
        assert_array_equal(torch.get_rng_state(), before)

    find_head(model, None, inputs)
    assert_unchanged()
    measure(model, [(inputs, labels)])
    assert_unchanged()
    for wrong in ("none", "body"):
        with pytest.raises(CollapseError, match="head="):
            find_head(model, wrong, inputs)
        assert_unchanged()
    with pytest.raises(RuntimeError):
        find_head(model, None, inputs[:, :2])
    assert_unchanged()
    head = find_head(model, None, inputs)
    with pytest.raises(RuntimeError):
        forward(model, head, inputs[:, :2])
    assert_unchanged()
    assert calls


@pytest.mark.parametrize("kind", ["linear", "convolution", "tokens"])
def test_gradients_flow_through_forward(kind):
    if kind == "linear":
        model, inputs = Wrapped(), batch()[0]
    elif kind == "tokens":
        model = Positions(nn.Linear(5, 8), nn.Linear(8, K), lambda z: z.mean(dim=1))
        inputs = batch(shape=(7, 6, 5))[0]
    else:
        model = Positions(nn.Conv2d(2, 8, 3), nn.Conv2d(8, K, 1), lambda z: z.mean(dim=(2, 3)))
        inputs = batch(shape=(7, 2, 6, 6))[0]
    head = find_head(model, None, inputs)
    features, logits = forward(model, head, inputs)
    assert features.shape == (7, 8)
    assert_allclose(logits.detach(), model(inputs).detach(), rtol=FLOAT32, atol=FLOAT32)
    nn.functional.cross_entropy(logits, LABELS).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), LABELS).backward()
    for name, parameter in model.named_parameters():
        assert_allclose(found[name], parameter.grad, rtol=FLOAT32, atol=FLOAT32, err_msg=name)
    model.zero_grad()
    forward(model, head, inputs)[0].square().sum().backward()
    assert model.head.weight.grad is None  # features do not depend on the head
    assert all(p.grad is not None for p in model.body.parameters())


def test_the_head_of_stored_features_is_that_of_the_network():
    model, (inputs, labels) = Wrapped(), batch()
    head = find_head(model, None, inputs)
    features, _ = forward(model, head, inputs)
    assert_same(measure(model, [(inputs, labels)]), measure_features(features, labels, head.weight), FLOAT32)
