"""Search with Optuna: 20 trials of beta and learning rate on ablate_beta:short.

Needs `pip install optuna`. Command: python -m experiments.optuna_example
The trials are a sweep in sweeps/optuna, with one compile and one reference. The
sampler has a seed: a second start finds the finished trials, and goes on.
"""

import optuna

import dpo_jax

SEARCH = dpo_jax.Search('experiments/ablate_beta.py:short', 'sweeps/optuna')


def accuracy(trial: optuna.Trial) -> float:
  """Trains a point; returns its last held-out accuracy."""
  values = {
    'loss.beta': trial.suggest_float('beta', 0.01, 1.0, log=True),
    'optim.learning_rate': trial.suggest_float('rate', 1e-5, 1e-3, log=True),
  }
  return SEARCH.train(values).metrics['eval']['rewards/accuracies'][-1]


if __name__ == '__main__':
  sampler = optuna.samplers.TPESampler(seed=0)
  study = optuna.create_study(direction='maximize', sampler=sampler)
  study.optimize(accuracy, n_trials=20)
  print(study.best_params, study.best_value)
