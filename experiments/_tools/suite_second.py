"""Half D of the labelled suite: networks by somebody who had seen neither the rules of `diagnose` nor what they miss.

Written down, trained and checked before any of them was diagnosed, as half C. Its weight is on what the halves before
have little of: steps at fault that leave features that differ (a rate that was raised at the end, units that died in
part, overshooting), biases frozen where weights of fixed norms or strong decay cannot make up for them, bottlenecks,
schedules cut short, and ordinary training with long tails, noise, smoothing or heads of fixed norms. Steps at fault and
frozen biases had been tried on other seeds, by recalls alone.
"""

from _tools.suite_networks import ALL, DEAD, GELU, HELD, LAW, MSE, NARROW, POOR, RICH, SEEN, half

TAIL, DROP = (140, 90, 60, 40, 26, 17, 11, 8), (75, 70, 65, 60, 55, 6, 4, 3)
EIGHT, TEN, SIX, SEVEN = (40,) * 8, (40,) * 10, (70, 60, 50, 40, 25, 20), (70, 60, 50, 40, 30, 22, 16)
GLASS, JOBS, TISSUES = (60, 55, 22, 12, 9), (200, 150, 80, 60), (30, 28, 25, 22, 4, 3)
SGD = {"optimizer": "sgd", "rate": 0.1}
MOMENTUM = {"optimizer": "sgd", "momentum": 0.9, "rate": 0.02}
ADAMW = {"optimizer": "adamw", "rate": 1e-3}
COSINE = {"norm": "unit", "scale": 16.0, "dim": 16}
RESIDUAL = {"body": "residual", "norm": "rms", "act": "", "optimizer": "adamw"}
CONSTANT, WIDE = {"schedule": "constant"}, {"twin": 32, "steps": 1200}
FREE = {"bias": False, "decay": 1e-3}
HISTORY = {"told": ("history",)}

D = {
    None: [
        ("long-tail", "digits@2", TAIL, {}),
        ("clothes-long-tail-cnn", "fashion-mnist@7", (300, 120, 60, 30, 15), {"conv": True, "steps": 300} | HISTORY),
        ("crabs", "crabs", (85, 85), {"dim": 8, "held_out": 8, "told": HELD}),
        ("mse-tail", "mnist-5k@1", (100, 60, 40, 25, 15), MSE | {"told": SEEN}),
        ("smoothing", "mnist-5k@8", EIGHT, {"smoothing": 0.2}),
        ("noise", "digits@7", EIGHT, {"noise": 0.3}),
        ("noise-gelu", "fashion-mnist@1", SIX, GELU | ADAMW | {"decay": 1.0, "noise": 0.2, "told": HELD}),
        ("fixed-norms", "mnist-5k@4", EIGHT, COSINE),
        ("fixed-norms-tail", "digits@6", (90, 60, 45, 30, 22, 16, 12), COSINE | {"told": SEEN}),
        ("adjusted-once", "digits@1", TAIL, {"change": "adjusted twice", "strength": 1.0, "told": HELD}),
        ("rings", "rings:4", (120, 80, 60, 50), {"steps": 500} | HISTORY),
        ("two-wide", "mixture:3:5:6", (80, 60, 40), {"dim": 2, "steps": 500}),
        ("jobs", "jobs", (200, 150, 150, 100), {"steps": 500, "decay": 1e-3} | HISTORY),
        ("biopsies", "biopsies", (300, 150), SGD | {"decay": 2e-3, "told": ("recipe", "optimizer")}),
        ("sayings", "sayings", (150, 150, 150), {"decay": 2e-3, "smoothing": 0.1, "steps": 200}),
        ("strong-decay", "mnist-5k@2", EIGHT, GELU | ADAMW | {"decay": 1.0, "steps": 800, "told": ALL}),
        ("tissues-momentum", "tissues", (30, 28, 25, 22, 18, 10), {"optimizer": "sgd", "momentum": 0.98, "rate": 0.005}
            | {"held_out": 5, "told": ("optimizer",)}),
        ("penalised", "mixture:9:14:7", (80, 60, 45, 34, 26, 20, 15, 12, 10), RICH | {"product": 0.5}
            | {"told": ("recipe", "history")}),
        ("sixty-kinds", "mixture:60:32:9", (12,) * 60, {"dim": 64, "hidden": (96,), "steps": 400}),
        ("units-died", "digits@3", EIGHT, SGD | {"dim": 10, "early": (10, 20, 1), "steps": 1200} | HISTORY),
        ("glass", "glass", (55, 50, 20), {"decay": 1e-3, "held_out": 9}),
        ("constant-batches", "mnist-5k@9", (60, 50, 40, 30, 20), MOMENTUM | CONSTANT | {"batch": 32, "told": SEEN}),
    ],
    "regularisation": [
        ("adamw-gelu-layernorm", "mnist-5k@3", DROP, GELU | ADAMW | {"decay": 5.0, "steps": 1000, "twin": 1500}),
        ("adamw", "fashion-mnist@2", (70, 60, 60, 50, 5, 4), ADAMW | {"decay": 8.0, "steps": 1000, "twin": 1500}
            | {"told": SEEN}),
        ("adamw-residual", "mixture:10:8:6", (60,) * 7 + (5, 4, 3), RESIDUAL | ADAMW | {"decay": 6.0, "steps": 800}
            | {"twin": 1200, "told": ("recipe", "optimizer")}),
        ("adamw-glass", "glass", (60, 55, 22, 3), ADAMW | {"decay": 6.0, "steps": 1000, "twin": 1500} | HISTORY),
        ("momentum", "digits@8", DROP, MOMENTUM | {"decay": 0.04, "steps": 1000, "twin": 2000} | HISTORY),
        ("law", "mnist-5k@9", DROP, LAW | {"decay": 0.15, "bias": False, "told": ("recipe",)}),
        ("law-kinds-untold", "mixture:9:14:7", (50,) * 6 + (4, 4, 3), LAW | {"decay": 0.16}),
        ("long-tail-untold", "digits@1", (140, 90, 60, 40, 26, 17, 9, 5), RICH | {"product": 8.0}),
        ("everything", "digits@5", (30,) * 8, RICH | {"product": 40.0, "told": ("recipe", "history")}),
        ("mse-biopsies", "biopsies", (300, 6), RICH | MSE | {"product": 9.0, "told": ("recipe",)}),
        ("tissues-plain-untold", "tissues", TISSUES, SGD | {"decay": 0.04, "steps": 2000, "twin": 4000}),
        ("gelu-layernorm-told", "fashion-mnist@8", (70, 60, 60, 50, 5, 4), GELU | ADAMW | {"decay": 4.0}
            | {"steps": 1000, "twin": 1500, "told": ("recipe", *SEEN)}),
    ],
    "optimiser": [
        ("late-rate", "fashion-mnist@5", SIX, SGD | {"late": (20, 8.0)} | HISTORY),
        ("late-rate-untold", "mnist-5k@7", EIGHT, SGD | {"late": (20, 8.0)}),
        ("late-silu", "digits@2", EIGHT, SGD | {"act": "silu", "late": (20, 12.0)}),
        ("late-small-batches", "jobs", JOBS, {"optimizer": "sgd", "rate": 0.1, "batch": 16, "steps": 500}
            | {"late": (40, 8.0)} | HISTORY),
        ("late-tanh", "mixture:7:9:6", SEVEN, SGD | {"act": "tanh", "late": (30, 25.0)} | HISTORY),
        ("late-momentum", "mnist-5k@2", SEVEN, MOMENTUM | {"late": (30, 6.0), "told": (*HELD, "history")}),
        ("adam-rate", "digits@4", SEVEN, CONSTANT | {"rate": 0.2, "steps": 400, "dim": 16, "told": SEEN}),
        ("adam-rate-silu", "sayings", (100, 80, 60, 40), CONSTANT | {"act": "silu", "rate": 0.5, "steps": 250}
            | {"dim": 10}),
        ("adamw-rate-gelu", "mnist-5k@9", EIGHT, {"act": "gelu", "optimizer": "adamw", "decay": 0.05, "rate": 0.3}
            | {"steps": 400, "told": HELD}),
        ("few-units-left", "mixture:7:9:6", SEVEN, SGD | {"dim": 8, "bias": False, "early": (6, 20, 1)}
            | {"steps": 1000}),
        ("no-warmup-adam", "mnist-5k@6", EIGHT, {"dim": 10, "early": (10, 60, 1), "steps": 500} | HISTORY),
        ("early-deep", "fashion-mnist@8", SIX, SGD | {"hidden": (32, 32), "dim": 16, "early": (10, 40, 1)}
            | {"steps": 1000, "told": HELD}),
        ("overshoot", "glass", GLASS, {"optimizer": "sgd", "momentum": 0.99, "rate": 1.0, "steps": 400, "dim": 12}
            | {"told": SEEN}),
        ("overshoot-rings", "rings:4", (80,) * 4, {"optimizer": "sgd", "momentum": 0.99, "rate": 0.5, "dim": 16}
            | {"told": ("optimizer",)}),
        ("rings-rate", "rings:5", (80,) * 5, CONSTANT | {"rate": 0.1, "steps": 500, "dim": 12} | HISTORY),
        ("small-batches", "jobs", JOBS, CONSTANT | {"optimizer": "sgd", "rate": 1.0, "batch": 8, "steps": 400}
            | {"dim": 12}),
        ("adam-rate-mse", "digits@1", SEVEN, MSE | CONSTANT | {"rate": 0.2, "steps": 400}),
        ("narrow-penalised", "mixture:9:14:7", (30,) * 9, POOR | {"product": 4.0, "dim": 9, "steps": 3000}
            | {"told": ("recipe",)}),
        ("early-penalties", "mnist-5k@1", (90, 70, 54, 42, 32, 25, 19), RICH | {"product": 1.0, "warmup": False}
            | {"early": (600, 1, 7), "told": ("recipe",)}),
        ("dead-units", "sayings", (100,) * 4, DEAD | {"product": 0.5, "steps": 2000, "told": ("recipe", "history")}),
    ],
    "unfinished": [
        ("cosine-cut", "digits@5", TAIL, SGD | {"rate": 0.05, "cut": 0.1, "twin": 8, "told": SEEN}),
        ("cosine-cut-adamw", "mnist-5k@6", SEVEN, ADAMW | {"rate": 3e-4, "decay": 0.01, "cut": 0.05, "twin": 4}),
        ("tiny-rate", "fashion-mnist@3", SIX, {"rate": 2e-5, "steps": 100, "twin": 80}),
        ("tiny-rate-crabs", "crabs", (90, 60), SGD | {"rate": 2e-3, "steps": 100, "twin": 150, "dim": 8} | HISTORY),
        ("gelu-layernorm", "mixture:9:14:7", (80, 60, 45, 34, 26, 20, 15, 12, 10), SGD | GELU | {"rate": 0.01}
            | {"steps": 60, "told": ("optimizer",)}),
        ("rare-only", "digits@1", DROP, SGD | CONSTANT | {"steps": 150}),
        ("fixed-norms", "mnist-5k@7", SEVEN, COSINE | {"rate": 1e-4, "steps": 30} | HISTORY),
        ("rings", "rings:4", (120, 80, 60, 50), {"rate": 1e-3, "steps": 60} | HISTORY),
        ("tissues-mse", "tissues", (30, 28, 25, 22, 18, 10), SGD | MSE | {"rate": 0.01, "steps": 40}),
        ("sayings-rare", "sayings", (250, 150, 100, 30), {"rate": 3e-4, "steps": 20, "told": HELD}),
        ("clothes-momentum-cut", "fashion-mnist@9", SIX, MOMENTUM | {"rate": 2e-3, "cut": 0.05, "twin": 6}
            | {"told": ALL}),
    ],
    "data": [
        ("coinciding", "mnist-5k@4", SEVEN, {"change": "coinciding", "pairs": ((5, 1),)}),
        ("sayings-coinciding", "sayings", (120, 120, 80, 30), GELU | {"change": "coinciding", "pairs": ((3, 0),)}
            | {"steps": 300} | HISTORY),
        ("tissues-coinciding", "tissues", (30, 28, 25, 22, 18, 10), {"change": "coinciding", "steps": 300}
            | {"pairs": ((4, 0), (5, 1))}),
        ("clothes-mislabelled", "fashion-mnist@6", (80, 60, 50, 40, 30, 30), NARROW | {"change": "mislabelled"}
            | {"pairs": ((4, 0),), "strength": 0.8, "decay": 0.01, "told": HELD}),
        ("kinds-mislabelled-untold", "mixture:7:9:6", (80,) * 6 + (40,), NARROW | {"change": "mislabelled"}
            | {"pairs": ((6, 1),), "strength": 0.8, "decay": 0.01}),
        ("mislabelled-stopped", "digits@8", (80, 70, 60, 50, 40, 40), NARROW | {"change": "mislabelled", "steps": 200}
            | {"pairs": ((5, 0),), "strength": 0.75, "decay": 5e-3} | HISTORY),
        ("few", "digits@4", (50,) * 7 + (2,), {"change": "few", "pairs": ((7, 0),), "twin": 50, "decay": 1e-3}
            | {"told": HELD}),
        ("few-fixed-norms", "mnist-5k@5", (60,) * 6 + (2,), COSINE | {"change": "few", "pairs": ((6, 0),), "twin": 60}
            | {"told": (*SEEN, *HELD)}),
        ("few-noise", "fashion-mnist@8", (60,) * 5 + (2,), {"change": "few", "pairs": ((5, 0),), "twin": 60}
            | {"noise": 0.1, "told": HELD}),
        ("inseparable", "mnist-5k@1", (90, 60, 50, 40, 30, 25), NARROW | {"change": "inseparable", "pairs": ((5, 0),)}
            | {"decay": 0.01, "told": SEEN}),
        ("overlap", "mixture:4:5:7:0.5", (250, 90, 90, 20), {"change": "overlap", "pairs": ((3, 0),), "decay": 1e-3}
            | {"dim": 8, "hidden": (8,)}),
        ("blank", "fashion-mnist@4", SIX, {"change": "blank", "pairs": ((5, 1),)}),
    ],
    "bias": [
        ("frozen-fixed-norms", "mnist-5k@3", TAIL, COSINE | {"scale": 4.0, "change": "frozen", "strength": 4.0}),
        ("frozen-fixed-norms-told", "digits@6", (90, 60, 45, 30, 22, 16, 12), COSINE | {"scale": 8.0}
            | {"change": "frozen", "strength": 8.0} | HISTORY),
        ("frozen-decayed-head", "mixture:9:14:7", (80, 60, 45, 34, 26, 20, 15, 12, 10), {"law": True, "decay": 0.03}
            | {"optimizer": "sgd", "rate": 0.3, "change": "frozen", "strength": 3.0, "told": HELD}),
        ("frozen-gelu-layernorm", "fashion-mnist@2", SIX, GELU | ADAMW | {"decay": 2.0, "steps": 800}
            | {"change": "frozen", "strength": 6.0} | HISTORY),
        ("sign-lost", "digits@2", TAIL, {"change": "in other units", "strength": -60.0}),
        ("raised", "sayings", (120, 120, 80, 40), {"change": "shifted", "pairs": ((1, 0),), "strength": -40.0}
            | {"steps": 300} | HISTORY),
        ("rolled", "tissues", (30, 28, 25, 22, 18, 10), {"change": "rolled", "strength": 150.0}),
        ("fixed-norms-shifted", "mnist-5k@8", EIGHT, COSINE | {"change": "shifted", "pairs": ((2, 0), (6, 0))}
            | {"strength": 40.0, "told": SEEN}),
        ("residual-other-prior", "fashion-mnist@1", SIX, RESIDUAL | {"change": "prior of other data", "strength": 8.0}
            | {"smoothing": 0.1, "told": HELD}),
        ("twice-scat", "scat", (40, 20, 12), {"change": "adjusted twice", "strength": 10.0, "told": ("optimizer",)}),
        ("mse-wrong-sign", "digits@9", SEVEN, MSE | {"change": "wrong sign", "strength": 1.0}),
        ("crabs-shifted", "crabs", (80, 60), {"change": "shifted", "pairs": ((1, 0),), "strength": 80.0, "told": SEEN}),
    ],
    "width": [
        ("two", "mnist-5k@5", TEN, FREE | WIDE | {"dim": 2}),
        ("sixty-three", "mixture:60:32:9", (10,) * 60, FREE | WIDE | {"dim": 3, "hidden": (96,)} | HISTORY),
        ("rings-one", "rings:5", (60,) * 5, FREE | WIDE | {"dim": 1}),
        ("bottleneck-two", "digits@3", TEN, FREE | WIDE | {"rank": 2} | HISTORY),
        ("bottleneck-one", "fashion-mnist@5", (40,) * 6, FREE | WIDE | {"rank": 1}),
        ("layernorm-two", "fashion-mnist@3", (50,) * 6, GELU | WIDE | {"dim": 2, "told": HELD}),
        ("jobs-one", "jobs", (100,) * 4, FREE | WIDE | {"dim": 1, "told": ("optimizer",)}),
        ("sayings-two", "sayings", (60,) * 8, FREE | WIDE | {"dim": 2, "steps": 600}),
        ("glass-one-tanh", "glass", (40, 40, 20, 12), FREE | WIDE | {"act": "tanh", "dim": 1, "told": SEEN}),
        ("mse-one", "mixture:7:9:6", (40,) * 7, FREE | WIDE | MSE | {"dim": 1, "told": HELD}),
        ("joint-three", "joint", (20,) * 20, WIDE | ADAMW | {"decay": 0.5, "dim": 3, "steps": 800} | HISTORY),
    ],
}  # fmt: skip

NINE, RARE = (80, 60, 45, 34, 26, 20, 15, 12, 10), (70, 60, 60, 50, 5, 4)
MORE_D = {
    "regularisation": [
        ("clothes-adamw", "fashion-mnist@2", RARE, ADAMW | {"decay": 10.0, "steps": 1500, "twin": 4000, "told": SEEN}),
        ("mnist-gelu-layernorm", "mnist-5k@3", DROP, GELU | ADAMW | {"decay": 10.0, "steps": 1200, "twin": 3500}),
        ("silu-adamw", "digits@6", DROP, ADAMW | {"act": "silu", "decay": 12.0, "steps": 1200, "twin": 3000}
            | {"told": ("recipe", "optimizer")}),
        ("kinds-gelu-layernorm", "mixture:9:14:7", (60,) * 6 + (5, 4, 3), GELU | ADAMW | {"decay": 8.0, "steps": 1200}
            | {"twin": 4000} | HISTORY),
        ("clothes-plain-untold", "fashion-mnist@8", RARE, SGD | {"decay": 0.06, "steps": 1500, "twin": 3000}),
    ],
    "optimiser": [
        ("late-residual", "digits@3", SEVEN, RESIDUAL | {"rate": 3e-3, "decay": 0.01, "steps": 300}
            | {"late": (20, 100.0)} | HISTORY),
        ("late-residual-untold", "mnist-5k@6", SEVEN, RESIDUAL | {"rate": 3e-3, "decay": 0.01, "steps": 300}
            | {"late": (20, 60.0)}),
        ("late-mnist", "mnist-5k@7", EIGHT, SGD | {"late": (20, 15.0)}),
        ("no-warmup-one", "digits@6", SIX, {"dim": 12, "early": (8, 80, 1), "steps": 400} | HISTORY),
        ("no-warmup-clothes", "fashion-mnist@4", SIX, {"dim": 14, "early": (8, 60, 1), "steps": 400}),
        ("no-warmup-kinds", "mixture:10:8:6", TEN, {"dim": 12, "early": (8, 100, 1), "steps": 400, "told": SEEN}),
        ("early-tanh", "digits@4", EIGHT, SGD | {"act": "tanh", "dim": 12, "early": (15, 100, 1), "told": HELD}),
        ("narrow-digits", "digits@2", (30,) * 8, POOR | {"product": 5.0, "dim": 8, "steps": 3000}
            | {"told": ("recipe",)}),
        ("wine-few-units-left", "wine", (55, 50, 40), SGD | {"dim": 6, "bias": False, "early": (5, 25, 1)}),
    ],
    "bias": [
        ("frozen-mild", "mnist-5k@3", (90, 60, 45, 30, 22, 16, 12), COSINE | {"scale": 4.0, "change": "frozen"}
            | {"strength": 2.0}),
        ("frozen-clothes", "fashion-mnist@7", SIX, COSINE | {"scale": 4.0, "change": "frozen", "strength": 2.5}
            | HISTORY),
        ("frozen-kinds", "mixture:9:14:7", NINE, COSINE | {"scale": 4.0, "change": "frozen", "strength": 2.0}
            | {"told": ("optimizer",)}),
        ("frozen-sayings", "sayings", (150, 80, 40, 20), COSINE | {"scale": 3.0, "change": "frozen", "strength": 2.0}
            | {"steps": 300, "told": HELD}),
        ("sign-lost-far", "digits@2", TAIL, {"change": "in other units", "strength": -300.0}),
        ("glass-raised", "glass", (55, 50, 20), {"change": "shifted", "pairs": ((2, 0),), "strength": -80.0}
            | {"steps": 800, "held_out": 9, "told": HELD}),
    ],
    "width": [
        ("bottleneck-joint", "joint", (20,) * 20, WIDE | {"rank": 1, "decay": 1e-3, "steps": 800} | HISTORY),
        ("bottleneck-sixty", "mixture:60:32:9", (10,) * 60, WIDE | {"rank": 1, "decay": 1e-3, "hidden": (96,)}),
        ("scat-one", "scat", (40, 20, 14), FREE | WIDE | {"dim": 1}),
        ("sixty-two", "mixture:60:32:9", (10,) * 60, FREE | WIDE | {"dim": 2, "hidden": (96,), "told": HELD}),
        ("digits-one-gelu", "digits@4", SEVEN, FREE | WIDE | {"dim": 1, "act": "gelu", "told": SEEN}),
    ],
}  # fmt: skip
"""Written after the checks of the others had thrown out many of a kind, and before anything was diagnosed."""

LAST_D = {
    "optimiser": [
        ("late-boots-untold", "fashion-mnist@9", SIX, SGD | {"late": (20, 8.0)}),
        ("late-trousers", "fashion-mnist@1", (40,) * 6, SGD | {"late": (25, 7.0), "told": HELD}),
        ("late-leaves", "leaves", (30,) * 8, SGD | {"late": (20, 15.0)} | HISTORY),
        ("late-residual-far", "digits@3", SEVEN, RESIDUAL | {"rate": 3e-3, "decay": 0.01, "steps": 300}
            | {"late": (20, 200.0)} | HISTORY),
        ("no-warmup-mnist", "mnist-5k@1", EIGHT, {"dim": 12, "early": (10, 60, 1), "steps": 500, "told": HELD}),
        ("no-warmup-digits", "digits@8", SEVEN, {"dim": 12, "early": (8, 80, 1), "steps": 400}),
        ("few-units-eight", "mixture:10:8:6", EIGHT, SGD | {"dim": 10, "bias": False, "early": (6, 18, 1)}
            | {"steps": 1000} | HISTORY),
        ("few-units-six", "mixture:6:10:5", SIX, SGD | {"dim": 8, "early": (6, 18, 1), "steps": 1000}
            | {"told": ("optimizer",)}),
        ("adam-rate-sayings", "sayings", (120, 100, 80, 60, 50), CONSTANT | {"act": "silu", "rate": 0.4, "steps": 250}
            | {"told": HELD}),
    ],
}  # fmt: skip
"""Written when of those of an optimiser half had features that were all the same, and before anything was diagnosed."""

SECOND = half("D", D, 4000) + half("D", MORE_D, 4500) + half("D", LAST_D, 4700)
