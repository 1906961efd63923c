"""Tolerances, keyed by the claim that they test. No test has a tolerance of its own."""

# closed form
GOLDEN = 1e-10  # the golden values are given to ten digits
BRUTE_OBJECTIVE = 1e-10  # relative, against bounded minimisation
BRUTE_GRAM = 1e-6  # relative to the largest entry, against bounded minimisation
BRUTE_FLOOR = 1e-6  # Grams below this share of their natural unit are compared with the unit
BRUTE_BAND = 1e-5  # |headroom − 1| below which the objective is too flat for any descent in float64
MARGIN = 1e-14  # absolute, of a loss at a given price, against 40 digits
THRESHOLD_BAND = 1e-3  # |1 − q/q_crit| from which margins are also EXACT relatively
PREDICTED_MARGIN = 1e-12  # absolute, against 50 digits, up to a thousand classes
MARGIN_PER_CLASS = 1e-15  # absolute, for every class beyond
SAFE_PRICE = 0.99  # share of the critical price below which margins are also MARGIN_RELATIVE
MARGIN_RELATIVE = 1e-13
BOUND = 1e-10  # relative, objective of a closed form against a rigorous lower bound
INVERSE = 1e-9  # relative, predict of what an inverse function returns
EXACT = 1e-12  # two ways to compute the same float64 number
LIMIT = 0.05  # relative, a limit λ → 0 that is approached like 1/log(1/λ)
GRAMS = 1e-11  # two ways to compute norms and Grams; margins near their threshold have lost a digit
UNITS = 1e-7  # relative, against numerical differentiation of a training objective
FROZEN_SHIFT = 1e-8  # relative, objective of descent through the kinks of a ReLU
STATIONARY = 1e-12  # drift in one step of a coupled optimiser at the optimum

# moments, against a two-pass float64 oracle; by the ratio of mean norm to within-class standard deviation
MOMENTS_MERGED = 1e-12  # ratio up to 1e3, any split
MOMENTS_EXTREME = 1e-9  # ratio up to 1e6, any split
METRICS = 1e-9  # a metric against its textbook formula on well-conditioned data
COLLAPSED_NC1 = 1e-28  # exactly collapsed features whose class means round: a square of roundings
FLOAT32 = 1e-5  # float32 features against float64 ones
PEERS = 1e-6  # a number of published code, by its own definition
PRODUCTS_NORM = 1e-7  # scatter from float32 products, relative to its norm; variances of classes
PRODUCTS_NC1 = 1e-8  # relative, NC1 from them

# solver
SOLVED = 1e-8  # relative gap that the solver promises by default
SOLVED_BIAS = 1e-6  # with a bias and the exact polar, on random problems
DUAL_ROUNDING = 1e-12  # a lower bound against a value: both are sums of rounded numbers
CONIC = 1e-6  # relative, against an interior-point solver of its own accuracy
BRUTE_BATCHNORM = 1e-9  # relative, objective of descent over the parameters of BatchNorm
HORIZON = 0.01  # relative, lr wd / (1 − μ)² and the first 1/(1 − μ) of few steps are left out
FLOOR = 1e-9  # by which a certified optimum may lie below its confidence floor
CERTIFIED = 1e-8  # relative gap of what counts as globally optimal
GROUPS = 1e-7  # relative, optimum by groups against that by single classes
BRUTE_TYPES = 1e-8  # relative, lowest of four bounded descents; where the optimum is flat they stop early
SPLIT_CLASSES = (
    1e-5  # relative, confidences and Grams of two solves, each to a gap of 1e-8: a root of it, less where flat
)
RATES = 0.02  # relative, discrete steps against the rate of gradient flow
TWO_CLASSES = 1e-9  # relative, confidences of two classes with a free bias
