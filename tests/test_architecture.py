"""Rules of the package, read from its source: layers, purity, size, docs."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'dpo_jax'

# Layers, bottom first. A module may import its own group and any group of a
# layer below. Its group is that of the longest name that its own begins with.
LAYERS = (
  {'nouns': ('types', 'errors', 'tree')},
  {
    'files': tuple(
      f'storage.{name}'
      for name in (
        'faults',
        'files',
        'uploads',
        'scratch',
        'buckets',
        'stores',
        'leftovers',
        'readable',
      )
    )
  },
  {
    'maths': ('scoring', 'losses', 'metrics', 'optim', 'models'),
    'data': ('data',),
  },
  {'composition': ('sharding', 'train_step')},
  {'storage': ('storage',)},
  {'choices': ('config',)},
  {'loops': ('run', 'train', 'rewards')},
  {'faces': ('main', 'results', 'bench', 'sweeps', 'exact')},
)
PURE = ('nouns', 'maths', 'data', 'composition')
# Modules with side effects: paths, clocks, logs, processes, flags, randomness.
IMPURE = frozenset(
  'absl datetime glob io logging multiprocessing os pathlib random shutil '
  'signal socket subprocess sys tempfile threading time ml_collections '
  'orbax tensorboardX rich matplotlib'.split()
)
# Exceptions, with their reasons.
_FILES = frozenset({'os', 'pathlib', 'io', 'tempfile', 'shutil', 'glob'})
EXEMPT = {
  'losses.catalogue': {'pathlib'},  # reads the sources beside it
  'data.sources.source': _FILES,  # reads files that users give
  'data.sources.files': _FILES,  # also
  'data.sources.arrow': _FILES,  # also
  'data.text.tokenizer': _FILES,  # also
  'data.sources.downloads': _FILES,  # also
  'data.sources.tfds_sets': _FILES,  # also
  'data.sources.tfds_builders': _FILES,  # also
  'data.sources.published': {'os'},  # os.path.join, for messages
  'data.sources.conversations': {'os'},  # os.path.commonprefix of two texts
  'data.text.patience': {'threading'},  # a thread that its caller can leave
  'data.text.sandbox': {'datetime'},  # strftime_now, which chat templates call
}
JAX = frozenset({'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'chex'})
FOREIGN = frozenset({'tensorflow', 'torch', 'transformers', 'trl'})
# Run in an environment of their own, where nothing of this package is imported.
GUESTS = {'trl_child', 'trl_encoding'}
# Folders of data/: file -> record, record -> tokens, lengths -> rows. Each may
# import itself and the listed ones.
DATA_ROOMS = {'sources': (), 'text': ('sources',), 'batches': ()}
# Facts with one home: module or call -> the files that may name it.
HOMES = {
  'hashlib': {'storage.files'},
  'difflib': {'errors'},
  'json.load': set(),
  # Texts that are not files: a column of a record, the JSON of a tokenizer.
  'json.loads': {
    'storage.files',
    'bench.protocol',  # answers of a process without this package
    'data.sources.conversations',
    'data.text.hf_tokenizer',
  },
  'InputError': {'errors'},  # calls only: `except` and types may name it
}
# Arrows of the flow: each is a module, whose docstring begins with it.
FLOW = (
  'record -> text',
  'text -> tokens',
  'tokens -> rows',
  'rows -> scores',
  'scores -> loss',
  'loss -> gradients',
  'gradients -> update',
  'update -> metrics',
  'metrics -> run directory',
  'run directory -> table and figure',
)


def _name(path: pathlib.Path) -> str:
  """The dotted name, such as `data` for dpo_jax/data/__init__.py."""
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob('*.py'))}
OUTSIDE = sorted((ROOT / 'experiments').glob('*.py'))
OUTSIDE += sorted((ROOT / 'scripts').glob('*.py'))


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(encoding='utf-8'))


def _group(module: str) -> tuple[int, str]:
  fitting = [
    (len(member), level, group)
    for level, groups in enumerate(LAYERS)
    for group, members in groups.items()
    for member in members
    if f'{module}.'.startswith(f'{member}.')
  ]
  assert fitting, f'{module}: give it a layer in LAYERS'
  return max(fitting)[1:]


def _imports(path: pathlib.Path, top_only: bool = False) -> set[str]:
  """Dotted names that a file imports; `from a import b` gives a and a.b."""
  tree = _tree(path)
  names = set()
  for node in tree.body if top_only else ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      names |= {node.module, *(f'{node.module}.{a.name}' for a in node.names)}
  return names


def _internal(path: pathlib.Path, top_only: bool = False) -> set[str]:
  """Modules of the package that a file imports."""
  names = {n.removeprefix('dpo_jax.') for n in _imports(path, top_only)}
  # An __init__ with nothing but a docstring imports nothing.
  known = names & set(MODULES) - {''}
  return {n for n in known if len(_tree(MODULES[n]).body) > 1}


def _external(path: pathlib.Path, top_only: bool = False) -> set[str]:
  return {n.partition('.')[0] for n in _imports(path, top_only)} - {'dpo_jax'}


def _uphill(module: str, imported: set[str]) -> list[str]:
  """The imports that the layer of a module does not allow."""
  level, group = _group(module)
  wrong = []
  for other in sorted(imported):
    other_level, other_group = _group(other)
    if other_level > level or (other_level == level and other_group != group):
      wrong.append(other)
  return wrong


def test_reads_imports_as_they_are():
  # The helpers below these tests, on a known file and on planted mistakes.
  assert 'types' in _internal(MODULES['main'])
  assert 'ml_collections' in _external(MODULES['main'])
  assert _uphill('scoring', {'types', 'models.decoder'}) == []
  assert _uphill('scoring', {'data.batches.rows'}) == ['data.batches.rows']
  assert _uphill('data.batches.rows', {'storage.run_dir'}) == [
    'storage.run_dir'
  ]
  assert _uphill('types', {'tree', 'train'}) == ['train']
  assert _uphill('data.text.encode', {'storage.files'}) == []
  assert _uphill('storage.files', {'errors', 'tree'}) == []
  assert _uphill('storage.files', {'storage.run_dir'}) == ['storage.run_dir']


@pytest.mark.parametrize('module', [m for m in MODULES if m])
def test_imports_point_down(module):
  assert not _uphill(module, _internal(MODULES[module]))


@pytest.mark.parametrize(
  'module', [m for m in MODULES if re.fullmatch(r'data\.\w+\.\w+', m)]
)
def test_rooms_of_data_import_no_others(module):
  room = module.split('.')[1]
  rooms = {
    other.split('.')[1]
    for other in _internal(MODULES[module])
    if other.startswith('data.')
  }
  assert rooms <= {room, *DATA_ROOMS[room]}


def test_no_import_cycles():
  done, stack = set(), []

  def visit(module):
    if module in done:
      return
    assert module not in stack, ' -> '.join([*stack, module])
    stack.append(module)
    for other in _internal(MODULES[module], top_only=True):
      # A package's __init__ imports its files; they may name the package.
      if not module.startswith(f'{other}.') and other != module:
        visit(other)
    done.add(stack.pop())

  for module in MODULES:
    visit(module)


@pytest.mark.parametrize('module', [m for m in MODULES if m])
def test_pure_layers_are_pure(module):
  path, (_, group) = MODULES[module], _group(module)
  if group not in PURE:
    return
  allowed = EXEMPT.get(module, frozenset())
  impure = _external(path) & (IMPURE - allowed)
  assert not impure
  if group == 'data':
    jax_imports = _external(path) & JAX
    assert not jax_imports
  for node in ast.walk(_tree(path)):
    assert not isinstance(node, ast.Global), f'{path}:{node.lineno}: global'
    called = getattr(getattr(node, 'func', None), 'id', '')
    banned = {'print', 'input'} | (set() if allowed is _FILES else {'open'})
    assert called not in banned, f'{path}:{node.lineno}: {called}()'


# Modules that open a file or list a folder by a name of the system's: that of
# this machine for sure, or a copy of an object. All others take a path from
# files.at, so that a URL is never taken for the name of a folder here.
BY_NAME = {
  *('storage.files', 'storage.scratch', 'storage.append', 'storage.places'),
  *('storage.hf_files', 'storage.run_lock', 'storage.leases'),
  *('storage.leftovers', 'run.output'),  # of this machine alone
  *('storage.environment', 'results.collect', 'results.provenance'),
  *('data.sources.files', 'data.sources.arrow', 'data.sources.downloads'),
  *('data.sources.tfds_builders', 'data.sources.tfds_sets', 'sweeps.claims'),
  *('losses.catalogue', 'config.knobs', 'config.help', 'config.load'),
  *(
    'main',
    'bench.sweep',
    'run.processes',
    'run.plan',
    'run.show',
    'sweeps.cost',
  ),
}
_BY_NAME = {'open', 'pathlib.Path', 'os.listdir', 'os.scandir', 'os.makedirs'}
_BY_NAME |= {'os.path.exists', 'os.path.isdir', 'os.path.isfile', 'os.replace'}


def test_paths_that_users_give_may_be_in_a_bucket():
  users = {m for m, path in MODULES.items() if _calls(path) & _BY_NAME}
  # Benchmarks work in folders of their own.
  users = {m for m in users if not m.startswith('bench.')}
  assert users <= BY_NAME


def test_config_dicts_stop_at_the_loops():
  for module, path in MODULES.items():
    if 'ml_collections' in _external(path):
      assert _group(module)[1] in ('choices', 'loops', 'faces'), module


def _calls(path: pathlib.Path) -> set[str]:
  """The calls in a file, as written, and the modules of their names."""
  calls = {
    ast.unparse(node.func)
    for node in ast.walk(_tree(path))
    if isinstance(node, ast.Call)
  }
  return calls | {name.partition('.')[0] for name in calls if '.' in name}


@pytest.mark.parametrize('name', HOMES)
def test_a_fact_has_one_home(name):
  users = {module for module, path in MODULES.items() if name in _calls(path)}
  assert users == HOMES[name]


@pytest.mark.parametrize('module', ['config', 'main'])
def test_a_refusal_imports_no_jax(module):
  # jax takes seconds to import: these modules must not load it.
  seen, waiting = set(), {module}
  while waiting:
    current = waiting.pop()
    seen.add(current)
    path = MODULES[current]
    assert not _external(path, top_only=True) & JAX, current
    packages = {current.partition('.')[0]} & set(MODULES)
    waiting |= (_internal(path, top_only=True) | packages) - seen


@pytest.mark.parametrize(
  'path', [*MODULES.values(), *OUTSIDE], ids=lambda p: str(p.relative_to(ROOT))
)
def test_file_is_short_documented_and_needs_no_other_framework(path):
  num_lines = len(path.read_text(encoding='utf-8').splitlines())
  assert num_lines <= 400
  assert ast.get_docstring(_tree(path)), 'no module docstring'
  if path.stem in GUESTS:
    assert not _internal(path) and 'dpo_jax' not in _imports(path)
  else:
    assert not _external(path) & FOREIGN and not GUESTS & _external(path)


@pytest.mark.parametrize('arrow', FLOW)
def test_each_arrow_of_the_flow_is_named(arrow):
  headings = {
    module: (ast.get_docstring(_tree(path)) or '').partition(':')[0]
    for module, path in MODULES.items()
  }
  assert [m for m, heading in headings.items() if arrow in heading]
