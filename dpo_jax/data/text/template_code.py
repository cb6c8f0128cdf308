"""syntax tree -> Python code: what jinja2 makes of a template, with its work.

Comes in: the syntax tree of a chat template. Goes out: Python code in which
every operation that can take long goes through the environment (sandbox.py),
and loops and macros say how much code each of their turns runs. What is cheap
for every operand, such as the comparison with a short constant, stays as
jinja2 writes it. Runs nothing.
"""

from typing import Any

from jinja2 import compiler, nodes

from dpo_jax.data.text.budget import STEP

# Units of a node of the syntax tree: 8 nodes are a step.
_NODE = STEP // 8


class Generator(compiler.CodeGenerator):
  """jinja2's generator; costly operations become calls of the environment."""

  def visit_Call(self, node, frame, **options):  # noqa: N802
    """Calls the environment's own methods directly, others through `call`."""
    if not isinstance(node.node, nodes.EnvironmentAttribute):
      super().visit_Call(node, frame, **options)
      return
    self._write_call(node.node.name, node.args, frame)

  def visit_Concat(self, node, frame):  # noqa: N802
    """Writes the operator ~."""
    self._write_call('joined', node.nodes, frame)

  def visit_Compare(self, node, frame):  # noqa: N802
    """Writes a comparison; a chain keeps its operators, which stop early."""
    operand = node.ops[0]
    if len(node.ops) == 1 and _is_cheap(node.expr, operand):
      super().visit_Compare(node, frame)
    elif len(node.ops) == 1:
      operator = nodes.Const(operand.op)
      self._write_call('compared', [operator, node.expr, operand.expr], frame)
    else:
      self.write('(')
      self._write_call('weighed', [node.expr], frame)
      for operand in node.ops:
        self.write(f' {compiler.operators[operand.op]} ')
        self._write_call('weighed', [operand.expr], frame)
      self.write(')')

  def visit_Getitem(self, node, frame):  # noqa: N802
    """Writes x[key], or x[start:stop:step]."""
    if not isinstance(node.arg, nodes.Slice):
      super().visit_Getitem(node, frame)
      return
    parts = (node.arg.start, node.arg.stop, node.arg.step)
    parts = [nodes.Const(None) if part is None else part for part in parts]
    self._write_call('sliced', [node.node, *parts], frame)

  def visit_Dict(self, node, frame):  # noqa: N802
    """Writes a dict; keys that are no constants are checked."""
    self.write('{')
    for item in node.items:
      if isinstance(item.key, nodes.Const):
        self.visit(item.key, frame)
      else:
        self._write_call('key', [item.key], frame)
      self.write(': ')
      self.visit(item.value, frame)
      self.write(', ')
    self.write('}')

  def _write_call(self, name: str, args: list, frame: Any) -> None:
    self.write(f'environment.{name}(')
    for arg in args:
      self.visit(arg, frame)
      self.write(', ')
    self.write(')')


def count_work(tree: nodes.Template) -> dict[str, int]:
  """Makes loops count their turns.

  Args:
    tree: changed in place: the iterable of each `for` goes through the
      environment's `counted`, with the units that a turn takes.

  Returns:
    The units of a call of each macro, by its name; '' = of everything.
  """
  macros: dict[str, int] = {}

  def units(node: nodes.Node) -> int:
    own = sum(map(units, node.iter_child_nodes())) + _NODE
    if isinstance(node, nodes.TemplateData):
      own += len(node.data)
    elif isinstance(node, nodes.Const) and isinstance(node.value, str):
      own += len(node.value)
    elif isinstance(node, nodes.For):
      node.iter = environment_call('counted', [node.iter, nodes.Const(own)])
    elif isinstance(node, nodes.Macro | nodes.CallBlock):
      name = getattr(node, 'name', 'caller')
      macros[name] = max(own, macros.get(name, 0))
    return own

  macros[''] = units(tree)
  return macros


def environment_call(name: str, args: list) -> nodes.Call:
  """Returns the call of a method of the environment."""
  return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)


def _is_cheap(left: nodes.Expr, operand: nodes.Operand) -> bool:
  """Whether a comparison is short for every value of what is no constant."""
  if operand.op in ('in', 'notin'):
    items = getattr(operand.expr, 'items', None)
    return isinstance(items, list) and all(map(_is_scalar, items))
  return _is_scalar(left) or _is_scalar(operand.expr)


def _is_scalar(node: nodes.Node) -> bool:
  return isinstance(node, nodes.Const)
