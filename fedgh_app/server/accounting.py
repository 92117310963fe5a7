"""How much privacy is spent by noise: the arithmetic of ε."""

import math


def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """The ε of ``releases`` Gaussian mechanisms, one after the other, at ``delta``; exact, not a bound.

    Together they are one Gaussian mechanism of sensitivity μ = √T / z (Dong, Roth and Su, "Gaussian Differential
    Privacy", 2022, corollary 2), whose δ(ε) Balle and Wang give ("Improving the Gaussian Mechanism for Differential
    Privacy", ICML 2018, theorem 8): Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ). Each may depend on what those before have
    shown. No sampling of clients is counted in favour: who trains is a function of the seed, which is no secret.

    Args:
        noise_multiplier: z, the noise's standard deviation over the sensitivity of one release.
        releases: T, at least 0.
        delta: between 0 and 1.
    """
    from scipy.optimize import brentq  # which no client needs
    from scipy.special import log_ndtr

    if releases == 0:
        return 0.0
    mu = math.sqrt(releases) / noise_multiplier

    def excess(eps: float) -> float:
        """log δ(eps) - log delta."""
        first, second = log_ndtr(mu / 2 - eps / mu), log_ndtr(-mu / 2 - eps / mu)
        left = -math.expm1(min(eps + second - first, 0.0))
        return float(first + math.log(left) - math.log(delta)) if left > 0 else -math.inf

    if excess(0.0) <= 0:
        return 0.0
    # Above the ε of concentrated differential privacy (Bun and Steinke 2016, proposition 1.3).
    bound = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(lambda eps: max(excess(eps), -1e3), 0.0, bound))
