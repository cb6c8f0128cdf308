"""R12: rows read = rows accounted for, in every run that ends."""

import machine
from score import Line

_ROW = '{{"prompt": "p{0}", "chosen": "yes {0}", "rejected": "no {0}"}}\n'


def balance(line: Line) -> None:
  """R12: the ledger adds up, with rows that are dropped or there twice."""
  data = line.place('rows').with_suffix('.jsonl')
  for case in range(line.pick(1, 12)):
    rows = [_ROW.format(i) for i in range(40)]
    rows += line.random.choices(rows, k=case % 5 + 1)
    # Some are longer than a row of the model.
    rows += [_ROW.format(f'{i} ' + 'x' * 300) for i in range(case % 4)]
    line.random.shuffle(rows)
    data.write_text(''.join(rows))
    steps = line.random.choice((3, 8, 17))
    workdir = line.place('ledger')
    child = line.train(workdir, data__train=data, train__num_steps=steps)
    code, text = child.wait(), child.text()
    is_right = not code and machine.balances(text)
    line.fault(f'case {case}', '' if is_right else f'exit {code} {text[-400:]}')
