"""config.chosen: losses, options, sources and keywords of a config."""

from dpo_jax import config


def test_terms_are_set_freely_and_only_used_ones_remain(load):
  # From an experiment that chose sigmoid: the DPO + NLL mix of RPO, then IPO.
  loaded = load('dpo', 'loss.terms.nll=0.2')
  assert config.loss_terms(loaded) == {'nll': 0.2, 'sigmoid': 1.0}
  loaded = load('dpo', 'loss.terms.sigmoid=0 loss.terms.ipo=1')
  assert loaded.loss.terms.to_dict() == {'ipo': 1.0}
  assert config.loss_hyper(loaded) == {'beta': 0.1}
  assert config.loss_static(loaded) == {}
  loaded = load('dpo', 'loss.terms.ipo=1 loss.reduction=sum')
  assert config.loss_static(loaded) == {'reduction': 'sum'}


def test_several_sources_in_one_text_have_equal_shares(load):
  loaded = load('dpo', 'data.train=../a.jsonl,b.jsonl')
  assert config.source_names(loaded.data.train) == ('../a.jsonl', 'b.jsonl')
  assert config.proportions(loaded) == (1.0, 1.0)


def test_options_are_those_whose_key_is_set(load):
  loaded = load('dpo', 'loss.wpo=True loss.ld_alpha=0.5 loss.tr_dpo=False')
  assert set(config.loss_options(loaded)) == {'wpo', 'ld_alpha'}


def test_keywords_are_those_that_the_chosen_functions_have(load):
  loaded = load('dpo', 'optim.name=rmsprop optim.b2=0.99')
  assert config.optimizer_options(loaded) == {'b2': 0.99}
  assert config.schedule_options(loaded) == {'final_fraction': 0.0}
  loaded = load('dpo', 'optim.name=adafactor optim.schedule=constant')
  assert config.optimizer_options(loaded) == {}
  assert config.schedule_options(loaded) == {}
