"""Half C of the labelled suite: networks by somebody who had not seen the rules of `diagnose`.

Written down, trained and checked before any of them was diagnosed. Other sets and classes, residual nets, attention,
a ResNet, RMSNorm, two to forty classes; half of them come with nothing but features, labels and head.
"""

from _tools.suite_networks import ALL, DEAD, GELU, HELD, LAW, MSE, NARROW, POOR, RICH, SEEN, half

TEN = (40,) * 10
SLOPE = (100, 85, 70, 55, 45, 35, 28, 22, 16, 12)
DROP = (75, 75, 65, 65, 55, 55, 45, 6, 5, 3)
SIX = (70, 60, 50, 40, 25, 20)
LEAVES = (50, 45, 40, 36, 32, 28, 24, 20, 16, 12)
TISSUES = (30, 28, 25, 22, 18, 10)
BATCHES = {"batch": 64}
TOKENS = {"body": "attention", "norm": "layer", "act": "", "rate": 2e-3}
ATTENTION = TOKENS | BATCHES | {"optimizer": "adamw", "decay": 0.01}
RESIDUAL = {"body": "residual", "norm": "rms", "act": "", "optimizer": "adamw", "decay": 0.01}
RESNET = {"body": "resnet", "optimizer": "sgd", "momentum": 0.9, "rate": 0.05, "decay": 5e-4, "steps": 400} | BATCHES
MOMENTUM = {"optimizer": "sgd", "momentum": 0.9, "rate": 0.02}
SGD = {"optimizer": "sgd", "rate": 0.1}
CONSTANT, WIDE = {"schedule": "constant"}, {"twin": 32, "steps": 1200}
FREE = {"bias": False, "decay": 1e-3}

C = {
    None: [
        ("attention", "digits@5", TEN, ATTENTION | {"told": (*SEEN, *HELD)}),
        ("resnet-tail", "mnist-5k@4", SLOPE, RESNET | {"told": ALL}),
        ("clothes-residual", "fashion-mnist@4", SIX, RESIDUAL),
        ("leaves", "leaves", (38,) * 32, {"dim": 48, "hidden": (96,), "rate": 5e-3, "held_out": 10, "told": HELD}),
        ("leaves-tail", "leaves", LEAVES, {"act": "silu", "decay": 1e-4, "held_out": 10}),
        ("forty-kinds", "mixture:40:24:9", (12,) * 40, {"dim": 48, "hidden": (96,)}),
        ("joint-cnn", "joint", (30,) * 20, {"conv": True, "optimizer": "adamw", "decay": 0.02, "told": ("history",)}),
        ("wine", "wine", (50, 40, 30), MOMENTUM | {"dim": 6, "hidden": (12,), "told": ("optimizer",)}),
        ("breast", "breast-cancer", (250, 150), GELU | {"dim": 8, "rate": 1e-3, "steps": 300, "told": HELD}),
        ("breast-rare", "breast-cancer", (300, 25), {"decay": 1e-3, "steps": 400}),
        ("tissues", "tissues", TISSUES, {"optimizer": "adamw", "decay": 0.1, "held_out": 5, "told": HELD}),
        ("kinds-noise", "mixture:6:12:7", (80,) * 6, {"change": "mislabelled", "strength": 0.1, "dim": 12}
            | {"pairs": ((0, 3), (1, 4), (2, 5)), "told": (*SEEN, *HELD)}),
        ("spam", "spam", (300, 200), {"dim": 8, "hidden": (16,), "decay": 1e-3, "told": (*HELD, "history")}),
        ("quotes", "quotes", (200, 200, 150, 80), {"steps": 200}),
        ("law", "digits@5", SLOPE, LAW | {"decay": 0.03, "told": ("recipe", *SEEN)}),
        ("clothes-penalised-bias", "fashion-mnist@3", SIX, RICH | {"bias": True, "product": 1.5, "told": ("recipe",)}),
        ("constant-rate", "mnist-5k@3", TEN, MOMENTUM | {"schedule": "constant", "steps": 300, "told": SEEN}),
        ("very-few", "mixture:3:4:6", (9, 6, 4), {"dim": 6, "hidden": (16,), "steps": 300}),
        ("two-kinds-rare", "mixture:2:6:4", (400, 8), {"dim": 8, "optimizer": "adamw", "decay": 0.01}),
        ("adamw-decay", "mnist-5k@7", SLOPE, {"optimizer": "adamw", "decay": 0.3, "told": ALL}),
        ("decay-at-rest", "digits@2", TEN, SGD | {"norm": "batch", "decay": 5e-3, "steps": 2000}),
        ("overlapping", "mixture:8:6:3", (60,) * 8, {"dim": 12, "hidden": (24,), "decay": 1e-3, "told": SEEN}),
        ("resnet-weighted", "digits@6", SLOPE, RESNET | {"weighted": True, "told": HELD}),
        ("clothes-attention-mse", "fashion-mnist@5", SIX, ATTENTION | MSE | {"bias": False}),
    ],
    "regularisation": [
        ("adamw", "digits@2", DROP, {"optimizer": "adamw", "decay": 3.0, "rate": 1e-3, "steps": 3000, "twin": 4000}
            | {"told": ("recipe", "optimizer")}),
        ("attention-adamw", "digits@4", DROP, ATTENTION | {"decay": 4.0, "rate": 1e-3, "steps": 1500, "twin": 2500}),
        ("plain-bias", "mnist-5k@2", DROP, SGD | {"decay": 0.03, "steps": 2500, "twin": 5000, "told": ("recipe",)}),
        ("clothes-plain-untold", "fashion-mnist@3", (80, 70, 60, 60, 5, 4), SGD | {"decay": 0.04, "steps": 2500}
            | {"twin": 5000}),
        ("resnet", "mnist-5k@6", DROP, RESNET | {"decay": 0.05, "steps": 800, "twin": 1500, "told": ("recipe", *SEEN)}),
        ("adam-layernorm", "digits@7", DROP, GELU | {"decay": 0.05, "steps": 2000, "twin": 4000}),
        ("joint", "joint", (40,) * 16 + (4,) * 4, RICH | {"product": 8.0, "told": ("recipe",)}),
        ("forty-kinds", "mixture:40:24:9", (25,) * 32 + (3,) * 8, RICH | {"product": 6.0}),
        ("leaves-law", "leaves", (50,) * 8 + (5, 4), LAW | {"decay": 0.15, "bias": False, "told": SEEN}),
        ("law-bias-untold", "digits@4", DROP, LAW | {"decay": 0.15}),
        ("mse-plain", "mnist-5k@5", DROP, SGD | MSE | {"decay": 0.06, "steps": 2500, "twin": 5000, "told": HELD}),
        ("breast-bias", "breast-cancer", (300, 5), RICH | {"bias": True, "product": 9.0, "told": ("recipe",)}),
        ("two-kinds-plain", "mixture:2:6:4", (300, 6), SGD | {"decay": 0.05, "steps": 2500, "twin": 5000, "told": ALL}),
    ],
    "optimiser": [
        ("loud-start", "digits@3", TEN, SGD | {"dim": 12, "steps": 2500, "early": (20, 150, 1), "decay": 1e-4}),
        ("adam-rate", "mnist-5k@3", SLOPE, {"rate": 0.3, "schedule": "constant", "steps": 400, "told": SEEN}),
        ("clothes-momentum", "fashion-mnist@2", SIX, MOMENTUM | {"rate": 1.0, "batch": 16, "schedule": "constant"}
            | {"told": SEEN}),
        ("attention-rate", "digits@8", SLOPE, ATTENTION | {"rate": 0.1, "schedule": "constant", "steps": 500}
            | {"told": ("optimizer", "history")}),
        ("residual-rate-untold", "digits@1", SLOPE, RESIDUAL | {"rate": 0.3, "schedule": "constant", "steps": 500}),
        ("leaves-early", "leaves", LEAVES, RICH | {"product": 1.0, "warmup": False, "early": (500, 1, 7)}
            | {"told": ("recipe",)}),
        ("joint-narrow", "joint", (20,) * 20, POOR | {"product": 4.0, "dim": 20, "told": ("recipe",)}),
        ("wine-dead-units", "wine", (50, 40, 30), DEAD | {"product": 0.5, "told": ("recipe", "history")}),
        ("twelve-early-bias", "mixture:12:8:7", (40,) * 12, RICH | {"bias": True, "product": 2.0, "warmup": False}
            | {"early": (500, 1, 6), "told": ALL}),
        ("all-dead", "mnist-5k@8", TEN, SGD | {"rate": 8.0, "steps": 400, "schedule": "constant"}),
        ("clothes-dead-units", "fashion-mnist@3", (50,) * 6, DEAD | {"product": 1.0, "told": ("recipe",)}),
        ("adam-loud-start", "tissues", TISSUES, {"dim": 8, "early": (40, 100, 1), "steps": 1500, "held_out": 5}
            | {"told": ("history",)}),
        ("forty-kinds-narrow", "mixture:40:24:9", (15,) * 40, POOR | {"product": 3.0, "dim": 40, "told": ("recipe",)}),
        ("clothes-early-told", "fashion-mnist@4", SIX, RICH | {"product": 2.0, "warmup": False, "early": (500, 1, 6)}
            | {"told": ("recipe", *SEEN)}),
    ],
    "unfinished": [
        ("attention", "digits@6", SLOPE, ATTENTION | CONSTANT | {"rate": 2e-4, "steps": 60, "twin": 40}),
        ("resnet", "mnist-5k@5", SLOPE, RESNET | {"rate": 0.01, "steps": 15, "twin": 30, "told": SEEN}),
        ("leaves", "leaves", LEAVES, {"rate": 5e-4, "steps": 30, "twin": 100, "told": ("history",)}),
        ("forty-kinds", "mixture:40:24:9", (15,) * 40, SGD | {"rate": 0.05, "steps": 150, "twin": 60}),
        ("dropped-rate", "mnist-5k@6", SLOPE, SGD | {"schedule": "step", "steps": 1000, "twin": 4, "told": SEEN}),
        ("dropped-rate-untold", "digits@9", SLOPE, SGD | {"schedule": "step", "steps": 1200, "twin": 4}),
        ("tissues", "tissues", TISSUES, MOMENTUM | {"rate": 1e-4, "steps": 40, "twin": 100, "told": ("optimizer",)}),
        ("breast-rare", "breast-cancer", (300, 20), SGD | {"rate": 0.01, "steps": 30, "twin": 100}
            | {"told": ("history",)}),
        ("wine-adamw", "wine", (55, 40, 12), {"optimizer": "adamw", "rate": 1e-4, "decay": 0.1, "steps": 60}
            | {"told": ALL}),
        ("joint-law", "joint", (60,) * 10 + (20,) * 10, LAW | {"decay": 0.01, "steps": 15, "told": ("recipe", *SEEN)}),
        ("residual-tail", "digits@7", SLOPE, RESIDUAL | {"rate": 1e-4, "steps": 60, "told": HELD}),
        ("two-kinds", "mixture:2:6:4", (300, 10), SGD | {"rate": 0.01, "steps": 40, "twin": 100, "told": ("history",)}),
        ("quotes", "quotes", (250, 150, 100, 60, 40), {"rate": 1e-4, "steps": 40, "told": SEEN}),
        ("cosine-ended", "fashion-mnist@1", SIX, SGD | {"rate": 0.02, "steps": 150, "told": HELD}),
    ],
    "data": [
        ("coinciding-attention", "digits@2", TEN, ATTENTION | {"change": "coinciding", "pairs": ((3, 6),)}
            | {"told": HELD}),
        ("blank", "mnist-5k@1", SLOPE, {"conv": True, "change": "blank", "pairs": ((7, 2),)}),
        ("clothes-inseparable", "fashion-mnist@3", (80, 60, 50, 40, 30, 30), NARROW | {"change": "inseparable"}
            | {"pairs": ((5, 0),), "decay": 4e-3, "told": SEEN}),
        ("kinds-mixed", "mixture:6:12:7", (80,) * 5 + (40,), NARROW | {"change": "mixed", "pairs": ((5, 0),)}
            | {"decay": 0.01}),
        ("mixed", "digits@4", (60,) * 9 + (30,), NARROW | {"change": "mixed", "pairs": ((9, 0),), "decay": 8e-3}
            | {"told": HELD}),
        ("overlap", "mixture:5:6:8:0.6", (200, 80, 80, 80, 20), NARROW | {"change": "overlap", "pairs": ((4, 0),)}
            | {"decay": 1e-3}),
        ("overlap-told", "mixture:3:4:8:0.5", (300, 100, 20), {"change": "overlap", "pairs": ((2, 0),), "decay": 1e-3}
            | {"dim": 8, "hidden": (8,), "told": ("recipe", *SEEN, *HELD)}),
        ("few-resnet", "mnist-5k@2", (60,) * 9 + (2,), RESNET | {"change": "few", "pairs": ((9, 0),), "twin": 60}
            | {"told": HELD}),
        ("leaves-few", "leaves", (45,) * 11 + (2,), {"change": "few", "pairs": ((11, 0),), "twin": 40, "held_out": 10}
            | {"told": (*SEEN, *HELD)}),
        ("joint-few", "joint", (40,) * 19 + (2,), {"conv": True, "change": "few", "pairs": ((19, 0),), "twin": 60}
            | {"told": HELD}),
        ("mislabelled-untold", "digits@6", SLOPE, NARROW | {"change": "mislabelled", "pairs": ((6, 0),)}
            | {"strength": 0.75, "decay": 6e-3}),
        ("mislabelled", "mnist-5k@3", SLOPE, NARROW | {"change": "mislabelled", "pairs": ((5, 1),), "strength": 0.8}
            | {"decay": 6e-3, "told": (*SEEN, *HELD)}),
        ("breast-coinciding", "breast-cancer", (200, 60), {"change": "coinciding", "pairs": ((1, 0),)}),
        ("forty-coinciding", "mixture:40:24:9", (12,) * 40, {"change": "coinciding", "dim": 48, "hidden": (96,)}
            | {"pairs": ((3, 17), (8, 30), (21, 2))}),
        ("quotes-few", "quotes", (150, 150, 100, 2), {"change": "few", "pairs": ((3, 0),), "twin": 100, "steps": 200}
            | {"told": HELD}),
        ("digits-few", "digits@9", (50,) * 8 + (2, 2), GELU | {"change": "few", "pairs": ((8, 0), (9, 0)), "twin": 50}
            | {"rate": 1e-3, "steps": 300, "told": HELD}),
    ],
    "bias": [
        ("frozen-law", "digits@5", SLOPE, LAW | {"decay": 0.03, "change": "frozen", "strength": 3.0, "told": SEEN}),
        ("frozen-plain", "mnist-5k@4", SLOPE, SGD | {"decay": 5e-3, "change": "frozen", "strength": 4.0}
            | {"steps": 1500}),
        ("rolled", "mnist-5k@2", SLOPE, {"change": "rolled", "strength": 60.0}),
        ("background", "fashion-mnist@3", SIX, {"conv": True, "change": "shifted", "pairs": ((0, 0),)}
            | {"strength": -30.0, "told": SEEN}),
        ("forty-shifted", "mixture:40:24:9", (12,) * 40, {"dim": 48, "hidden": (96,), "change": "shifted"}
            | {"pairs": ((3, 0), (17, 0), (30, 0)), "strength": 30.0}),
        ("attention-shifted", "digits@3", TEN, ATTENTION | {"change": "shifted", "pairs": ((2, 0), (6, 0))}
            | {"strength": 20.0, "told": SEEN}),
        ("residual-wrong-sign", "digits@8", SLOPE, RESIDUAL | {"change": "wrong sign", "strength": 4.0}
            | {"smoothing": 0.1}),
        ("leaves-twice", "leaves", LEAVES, {"change": "adjusted twice", "strength": 6.0, "smoothing": 0.1}),
        ("breast-shifted", "breast-cancer", (250, 60), {"change": "shifted", "pairs": ((1, 0),), "strength": 60.0}
            | {"steps": 400, "told": HELD}),
        ("wine-other-prior", "wine", (60, 40, 12), MOMENTUM | {"change": "prior of other data", "strength": 10.0}
            | {"told": ("optimizer",)}),
        ("joint-other-units", "joint", (60,) * 8 + (20,) * 12, {"conv": True, "change": "in other units"}
            | {"strength": 80.0, "told": HELD}),
        ("tissues-shifted", "tissues", TISSUES, {"change": "shifted", "pairs": ((4, 0), (5, 0)), "strength": 40.0}
            | {"optimizer": "adamw", "decay": 0.1, "held_out": 5, "told": ALL}),
        ("quotes-wrong-sign", "quotes", (300, 150, 80, 40), {"change": "wrong sign", "strength": 4.0, "smoothing": 0.1}
            | {"steps": 300}),
        ("resnet-twice", "mnist-5k@9", SLOPE, RESNET | {"change": "adjusted twice", "strength": 5.0, "smoothing": 0.1}
            | {"told": ("history",)}),
    ],
    "width": [
        ("residual-two", "digits@5", TEN, WIDE | RESIDUAL | {"norm": "layer", "dim": 2, "steps": 1000}),
        ("forty-two", "mixture:40:24:9", (15,) * 40, FREE | WIDE | {"dim": 2, "hidden": (96,)}),
        ("forty-three-bias", "mixture:40:24:9", (15,) * 40, WIDE | {"decay": 1e-3, "dim": 3, "told": HELD}),
        ("joint-two", "joint", (20,) * 20, WIDE | {"conv": True, "decay": 1e-3, "dim": 2, "told": SEEN}),
        ("leaves-two", "leaves", (40,) * 12, FREE | WIDE | {"dim": 2, "held_out": 10, "told": HELD}),
        ("resnet-one", "digits@1", TEN, WIDE | RESNET | {"dim": 1, "steps": 800, "told": SEEN}),
        ("clothes-one-silu", "fashion-mnist@4", SIX, FREE | WIDE | {"act": "silu", "dim": 1}),
        ("tissues-one", "tissues", (24,) * 5, WIDE | {"decay": 1e-3, "dim": 1, "held_out": 5}),
        ("wine-one", "wine", (40, 40, 40), FREE | WIDE | {"dim": 1, "hidden": (12,)}),
        ("penalised-one", "mnist-5k@3", TEN, RICH | {"product": 1.0, "ratio": 100.0, "dim": 1, "twin": 32}
            | {"told": ("recipe",)}),
        ("mse-two", "mnist-5k@7", TEN, FREE | WIDE | MSE | {"dim": 2}),
        ("law-one", "digits@8", SLOPE, LAW | {"decay": 0.01, "dim": 1, "twin": 64, "told": ("recipe", "optimizer")}),
        ("quotes-one", "quotes", (100,) * 5, WIDE | {"act": "gelu", "dim": 1, "steps": 500, "told": HELD}),
    ],
}  # fmt: skip

MORE_C = {
    "regularisation": [
        ("digits-adamw", "digits@9", DROP, {"optimizer": "adamw", "decay": 10.0, "rate": 1e-3, "steps": 2000}
            | {"twin": 3000, "told": ("recipe", *SEEN)}),
        ("gelu-layernorm", "digits@5", DROP, GELU | {"optimizer": "adamw", "decay": 6.0, "rate": 1e-3, "steps": 1500}
            | {"twin": 3000}),
    ],
    "optimiser": [
        ("clothes-small-batches", "fashion-mnist@6", SIX, MOMENTUM | {"rate": 0.3, "batch": 16, "decay": 1e-4}
            | {"schedule": "constant", "told": SEEN}),
        ("few-units", "digits@1", SLOPE, SGD | {"dim": 10, "steps": 2000, "early": (8, 40, 1)}),
        ("few-units-told", "mnist-5k@2", SLOPE, MOMENTUM | {"dim": 12, "steps": 1200, "early": (15, 40, 1)}
            | {"told": (*SEEN, *HELD)}),
        ("leaves-strong-start", "leaves", LEAVES, RICH | {"product": 1.0, "warmup": False, "early": (700, 1, 20)}
            | {"told": ("recipe", *SEEN)}),
    ],
    "data": [
        ("clothes-inside", "fashion-mnist@3", (90, 60, 50, 40, 30, 12), {"hidden": (12,), "dim": 10, "decay": 0.01}
            | {"change": "inseparable", "pairs": ((5, 0),), "told": SEEN}),
        ("kinds-mislabelled", "mixture:9:14:7", (60,) * 8 + (40,), NARROW | {"change": "mislabelled", "strength": 0.85}
            | {"pairs": ((8, 2),), "decay": 0.012}),
        ("digits-mislabelled", "digits@6", SLOPE, NARROW | {"change": "mislabelled", "pairs": ((6, 0),)}
            | {"strength": 0.85, "decay": 0.012, "told": HELD}),
        ("mnist-few-cnn", "mnist-5k@2", (60,) * 5 + (2,), {"conv": True, "change": "few", "pairs": ((5, 0),)}
            | {"twin": 60, "told": HELD}),
        ("digits-few-tanh", "digits@9", (50,) * 8 + (2,), {"act": "tanh", "change": "few", "pairs": ((8, 0),)}
            | {"twin": 50, "told": (*SEEN, *HELD)}),
        ("clothes-few", "fashion-mnist@6", (60,) * 6 + (3,), {"change": "few", "pairs": ((6, 0),), "twin": 100}
            | {"optimizer": "adamw", "decay": 0.05, "told": HELD}),
    ],
    "bias": [
        ("far-background", "fashion-mnist@2", SIX, {"conv": True, "change": "shifted", "pairs": ((0, 0),)}
            | {"strength": -150.0, "told": SEEN}),
        ("frozen", "digits@1", SLOPE, SGD | {"decay": 3e-3, "change": "frozen", "strength": 9.0, "steps": 1500}
            | {"told": HELD}),
        ("frozen-law-far", "digits@5", SLOPE, LAW | {"decay": 0.02, "change": "frozen", "strength": 7.0}
            | {"told": SEEN}),
    ],
}  # fmt: skip
"""Written after the checks of the others had thrown out many of a kind, and before anything was diagnosed."""

FRESH = half("C", C, 3000) + half("C", MORE_C, 3500)
