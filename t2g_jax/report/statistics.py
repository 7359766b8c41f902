"""How sure an accuracy is: intervals that stay in [0, 1] and respect repeated samples."""

import math

import numpy as np


def clustered_interval(correct, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for mean accuracy over prompts when each prompt was sampled several times.

    Samples of one prompt resemble each other, so P·S samples say less than P·S independent trials.
    With p̂ₚ the mean of prompt p and p̂ the mean of those,

    v = Σₚ (p̂ₚ − p̂)² / (P (P−1)),   n_eff = p̂(1−p̂) / v, at most P·S,

    and the result is Wilson's interval for n_eff trials with Student's t of P−1 degrees of freedom
    in place of z. v is the cluster-robust variance of p̂, the t quantile pays for estimating it
    from few prompts, and the score form keeps the interval inside [0, 1] near the ends. When every
    sample agrees, v = 0 says nothing about the correlation, and each prompt counts as one trial.

    "Evaluating Confidence Interval Methods for Binomial Proportions in Clustered Surveys", Dean and
    Pagano, J. Surv. Stat. Methodol. 2015 (the modified Wilson interval).

    Args:
      correct: [P, S] bool or float in [0, 1]: prompt by sample.
      confidence: probability that the interval covers the truth, in (0, 1).

    Returns:
      (low, high), containing the mean. One prompt alone gives (0, 1): it cannot tell how prompts
      differ.

    Raises:
      ValueError: correct is not [P, S] with P, S ≥ 1, or has a value outside [0, 1].
    """
    tail = _upper_tail(confidence)
    correct = np.asarray(correct, dtype=np.float64)
    if correct.ndim != 2 or correct.size == 0:
        raise ValueError(
            f"correct has shape {correct.shape}; expected [prompts, samples], neither of them 0 "
            "(one sample a prompt is [P, 1])"
        )
    if not ((correct >= 0) & (correct <= 1)).all():
        raise ValueError("correct has values outside [0, 1]; pass correctness, not the reward")
    prompts = correct.shape[0]
    if prompts == 1:
        return 0.0, 1.0
    mean = float(correct.mean())
    variance = float(correct.mean(axis=1).var(ddof=1)) / prompts
    spread = mean * (1 - mean)
    if spread <= 1e-12:
        effective = float(prompts)
    else:
        effective = min(spread / variance, correct.size) if variance > 0 else float(correct.size)
    return _score_interval(mean, effective, _student_quantile(tail, prompts - 1))


def crossed_interval(correct, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for mean accuracy over several trainings that were tested on the same prompts.

    Another seed would give another training, and other prompts another test: both are sampled. With
    p̂ₖ the mean of training k, p̂ₚ that of prompt p, and rₖₚ = p̂ₖₚ − p̂ₖ − p̂ₚ + p̂,

    v_K = Σₖ (p̂ₖ − p̂)² / (K (K−1)),   v_P = Σₚ (p̂ₚ − p̂)² / (P (P−1)),
    v_KP = Σₖₚ rₖₚ² / (K P (K−1) (P−1)),   v = max(v_K + v_P − v_KP, v_K, v_P),

    as each of the first two holds the third (two-way clustering). The rest is as for
    `clustered_interval`, with v² / (v_K² / (K−1) + v_P² / (P−1)) degrees of freedom: trainings that
    differ much count for few. With one training, or where trainings do not differ, it equals
    `clustered_interval`.

    "Robust Inference With Multiway Clustering", Cameron, Gelbach and Miller, J. Bus. Econ. Stat.
    2011; degrees of freedom: Satterthwaite, Biometrics 1946.

    Args:
      correct: [K, P, S] bool or float in [0, 1]: training by prompt by sample.
      confidence: probability that the interval covers the truth, in (0, 1).

    Returns:
      (low, high), containing the mean.

    Raises:
      ValueError: correct is not [K, P, S] with K, P, S ≥ 1, or has a value outside [0, 1].
    """
    correct = np.asarray(correct, dtype=np.float64)
    if correct.ndim != 3 or correct.size == 0:
        raise ValueError(
            f"correct has shape {correct.shape}; expected [trainings, prompts, samples], none 0"
        )
    seeds, prompts = correct.shape[:2]
    by_prompt = correct.transpose(1, 0, 2).reshape(prompts, -1)
    means = correct.mean(axis=2)
    mean = float(means.mean())
    spread = mean * (1 - mean)
    if seeds == 1 or prompts == 1 or spread <= 1e-12:
        return clustered_interval(by_prompt, confidence=confidence)
    tail = _upper_tail(confidence)
    clustered_interval(by_prompt, confidence=confidence)  # raises if a value is outside [0, 1]
    variance, freedom = _crossed_variance(correct)
    if not variance > 0:
        return clustered_interval(by_prompt, confidence=confidence)
    effective = min(spread / variance, correct.size)
    return _score_interval(mean, float(effective), _student_quantile(tail, freedom))


def reward_interval(rewards, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for a mean reward, on whatever scale, over prompts that were sampled several times.

    r̄ ± t √v, with v = Σₚ (r̄ₚ − r̄)² / (P (P−1)) and Student's t of P−1 degrees of freedom: the
    cluster-robust variance, as in `clustered_interval`. Of several trainings v is that of
    `crossed_interval`, with its degrees of freedom.

    Args:
      rewards: [P, S] floats: prompt by sample; or [K, P, S]: training by prompt by sample.
      confidence: probability that the interval covers the truth, in (0, 1).

    Returns:
      (low, high), containing the mean; (−inf, inf) for one prompt alone.

    Raises:
      ValueError: rewards are not [P, S] or [K, P, S], none of them 0, or not finite.
    """
    tail = _upper_tail(confidence)
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim not in (2, 3) or rewards.size == 0:
        raise ValueError(
            f"rewards has shape {rewards.shape}; expected [prompts, samples] or [trainings, "
            "prompts, samples], none 0"
        )
    if not np.isfinite(rewards).all():
        raise ValueError("rewards has values that are not finite")
    mean = float(rewards.mean())
    by_training = rewards.reshape(-1, *rewards.shape[-2:])
    if by_training.shape[1] == 1:
        return -math.inf, math.inf
    variance, freedom = _crossed_variance(by_training)
    half = _student_quantile(tail, freedom) * math.sqrt(variance)
    return mean - half, mean + half


def _crossed_variance(values: np.ndarray) -> tuple[float, float]:
    """Variance of the mean of [K, P, S] values, and its degrees of freedom: `crossed_interval`."""
    trainings, prompts = values.shape[:2]
    means = values.mean(axis=2)
    of_prompt = means.mean(axis=0)
    v_prompts = float(of_prompt.var(ddof=1)) / prompts
    if trainings == 1:
        return v_prompts, prompts - 1
    of_training = means.mean(axis=1)
    rest = means - of_training[:, None] - of_prompt + means.mean()
    v_trainings = float(of_training.var(ddof=1)) / trainings
    v_both = float((rest**2).sum()) / (trainings * prompts * (trainings - 1) * (prompts - 1))
    variance = max(v_trainings + v_prompts - v_both, v_trainings, v_prompts)
    if not variance > 0:
        return 0.0, prompts - 1
    squares = v_trainings**2 / (trainings - 1) + v_prompts**2 / (prompts - 1)
    return variance, variance**2 / squares


def _score_interval(mean: float, trials: float, quantile: float) -> tuple[float, float]:
    shrink = quantile**2 / trials
    center = mean + shrink / 2
    half = quantile * math.sqrt(mean * (1 - mean) / trials + shrink / (4 * trials))
    low, high = (center - half) / (1 + shrink), (center + half) / (1 + shrink)
    # Exact at the ends, where rounding would otherwise leave 1e-17.
    return (0.0 if mean == 0 else max(low, 0.0)), (1.0 if mean == 1 else min(high, 1.0))


def _upper_tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie strictly between 0 and 1")
    return 0.5 + confidence / 2


def _student_quantile(probability: float, freedom: float) -> float:
    from scipy.special import stdtrit  # takes a while, and most who import this ask for no interval

    return float(stdtrit(freedom, probability))
