'use strict';
// Texts enter the page as text only: by textContent, never as HTML.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const byId = (id) => document.getElementById(id);
  const runs = read('data-runs');
  const cells = read('data-cells');
  const figures = read('data-figures');
  const pairs = read('data-pairs');
  const samples = read('data-samples');
  const STEP = 20; // examples that are shown at once

  function make(name, className, ...inside) {
    const node = document.createElement(name);
    if (className) node.className = className;
    node.append(...inside.filter((part) => part !== null));
    return node;
  }

  // Tables -----------------------------------------------------------------

  const collator = new Intl.Collator('en', { numeric: true });

  function valueOf(cell) {
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    const text = cell.textContent.trim();
    if (text === '' || text === '-') return null;
    return Number.isFinite(Number(text)) ? Number(text) : text;
  }

  function compare(one, two) {
    if (typeof one === 'number' && typeof two === 'number') return one - two;
    return collator.compare(String(one), String(two));
  }

  function sortBy(table, index) {
    const heads = [...table.tHead.rows[0].cells];
    const before = heads[index].getAttribute('aria-sort');
    const next = { ascending: 'descending', descending: null }[before];
    const order = next === undefined ? 'ascending' : next;
    heads.forEach((head) => head.removeAttribute('aria-sort'));
    if (order) heads[index].setAttribute('aria-sort', order);
    const body = table.tBodies[0];
    const rows = [...body.rows];
    // The order of the file is the third one, after ascending and descending.
    rows.forEach((row, place) => { row.dataset.place ??= place; });
    rows.sort((a, b) => a.dataset.place - b.dataset.place);
    if (order) {
      const sign = order === 'ascending' ? 1 : -1;
      const keyed = rows.map((row) => [valueOf(row.cells[index]), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * compare(a, b);
      });
      body.append(...keyed.map(([, row]) => row));
    } else {
      body.append(...rows);
    }
  }

  for (const table of document.querySelectorAll('table.sorted')) {
    [...table.tHead.rows[0].cells].forEach((head, index) => {
      head.firstElementChild.addEventListener('click', () => {
        sortBy(table, index);
      });
    });
  }

  // Details ----------------------------------------------------------------

  function list(values) {
    const node = make('dl');
    for (const [name, value] of Object.entries(values)) {
      node.append(make('dt', '', name), make('dd', '', value));
    }
    return node;
  }

  function link(run) {
    const node = make('a', 'id', run.name);
    node.href = run.href;
    return node;
  }

  function describe(run, open) {
    const node = make('details', '', make('summary', '', run.name));
    node.open = open;
    node.append(make('p', '', 'Folder: ', link(run)), list(run.facts));
    node.append(make('h3', '', 'Data'), list(run.data));
    node.append(make('h3', '', 'Files that were read, by sha256'));
    node.append(list(run.files));
    return node;
  }

  function tree(value) {
    if (Array.isArray(value)) {
      if (value.every((part) => typeof part !== 'object' || part === null)) {
        const own = runs.filter((run) => value.includes(run.name));
        if (own.length && own.length === value.length) {
          const links = own.flatMap((run) => [link(run), ' ']);
          return make('span', '', ...links);
        }
        return make('span', '', value.join(', '));
      }
      return make('div', '', ...value.map((part) => {
        const name = (part && (part.label ?? part.name)) ?? 'entry';
        return make('details', '', make('summary', '', String(name)),
          tree(part));
      }));
    }
    if (value !== null && typeof value === 'object') {
      const node = make('dl');
      for (const [name, part] of Object.entries(value)) {
        node.append(make('dt', '', name), make('dd', '', tree(part)));
      }
      return node;
    }
    return make('span', '', String(value));
  }

  function show(title, ...parts) {
    byId('details-title').textContent = title;
    byId('details-body').replaceChildren(...parts);
    byId('details').showModal();
    byId('details').scrollTop = 0;
  }

  for (const button of document.querySelectorAll('td[data-at] > button')) {
    button.addEventListener('click', () => {
      const cell = cells[button.parentNode.dataset.at];
      const few = cell.runs.length < 2;
      show(cell.title, list(cell.numbers), make('h3', '', 'Runs'),
        ...cell.runs.map((index) => describe(runs[index], few)));
    });
  }
  for (const button of document.querySelectorAll('button[data-figure]')) {
    const name = button.dataset.figure;
    button.addEventListener('click', () => show(name, tree(figures[name])));
  }
  byId('details').addEventListener('click', (event) => {
    // Outside of its box: the backdrop.
    if (event.target === byId('details')) byId('details').close();
  });

  // Examples ---------------------------------------------------------------

  function option(value, text) {
    const node = make('option', '', text);
    node.value = value;
    return node;
  }

  function marked(pieces) {
    const node = make('div', 'text');
    node.dir = 'auto';
    for (const [text, trained] of pieces) {
      node.append(trained ? make('mark', '', text) : text);
    }
    return node;
  }

  function side(title, body) {
    return make('div', '', make('div', 'side', title), body);
  }

  function pairCard(one, item, rank) {
    const [index, ...numbers] = item;
    const pair = pairs.pairs[index];
    const facts = one.head.map((name, place) => {
      const value = numbers[place];
      return make('span', '', `${name}: ${value === null ? '-' : value}`);
    });
    const more = pair.number ? `, comparison ${pair.number}` : '';
    const card = make('article', '', make('header', '',
      make('strong', '', `${rank}.`), ...facts,
      make('span', 'id', `uid ${pair.uid}${more}`),
      make('span', 'id', `prompt_id ${pair.prompt_id}`)));
    if (pair.why !== undefined) {
      const why = pairs.reasons[pair.why];
      card.append(make('p', 'absent', `Texts are absent: ${why}`));
      return card;
    }
    card.append(side('prompt', marked(pair.prompt)), make('div', 'sides',
      side(`chosen, ${pair.tokens[0]} trained tokens`, marked(pair.chosen)),
      side(`rejected, ${pair.tokens[1]} trained tokens`,
        marked(pair.rejected))));
    return card;
  }

  function paged(place, lines, cards, total) {
    // cards: index -> card; made as they are asked for.
    const button = make('button', 'more', '');
    let shown = 0;
    const grow = () => {
      const stop = Math.min(shown + STEP, total);
      for (; shown < stop; shown += 1) button.before(cards(shown));
      button.textContent = `Show ${Math.min(STEP, total - shown)} more`;
      button.hidden = shown === total;
    };
    place.replaceChildren(
      ...lines.map((line) => make('p', 'pale', line)), button);
    button.addEventListener('click', grow);
    grow();
  }

  function textOf(pair) {
    const words = [pair.uid, pair.prompt_id];
    for (const name of ['prompt', 'chosen', 'rejected']) {
      words.push((pair[name] ?? []).map(([text]) => text).join(''));
    }
    return words.join('\n').toLowerCase();
  }

  function showPairs() {
    const one = pairs.lists[byId('scope').value];
    const words = byId('words').value.toLowerCase();
    const items = one.items.filter(
      ([index]) => !words || textOf(pairs.pairs[index]).includes(words));
    const filtered = words ? `${items.length} of these match. ` : '';
    paged(byId('examples-body'),
      [`${filtered}Shown: ${one.items.length} of ${one.of}.`,
        `${one.note} Trained tokens are marked.`],
      (i) => pairCard(one, items[i], one.items.indexOf(items[i]) + 1),
      items.length);
  }

  function chooseScopes() {
    const kind = byId('kind').value;
    const isSamples = kind === 'samples';
    for (const id of ['scope', 'words']) {
      byId(id).parentNode.hidden = isSamples;
    }
    for (const id of ['left', 'right']) {
      byId(id).parentNode.hidden = !isSamples;
    }
    if (isSamples) return showSamples();
    byId('scope').replaceChildren(...pairs.lists.flatMap((one, index) =>
      one.kind === kind ? [option(index, one.scope)] : []));
    return showPairs();
  }

  function byPrompt(set) {
    const groups = new Map();
    for (const row of set.rows) {
      groups.set(row.prompt, [...(groups.get(row.prompt) ?? []), row]);
    }
    return groups;
  }

  function sampleSide(set, rows) {
    const parts = rows.flatMap((row) => {
      const text = make('div', 'text', row.text);
      text.dir = 'auto';
      return [make('div', 'side', row.facts), text];
    });
    return make('div', '', make('strong', 'id', set.name), ...parts);
  }

  function showSamples() {
    const sets = [byId('left'), byId('right')].map(
      (select) => samples.sets[select.value]);
    const [left, right] = sets.map(byPrompt);
    const shared = [...left.keys()].filter((prompt) => right.has(prompt));
    const counts = sets.map((set) =>
      `${set.name}, ${set.file}: shown are ${set.rows.length} of ${set.of} ` +
      `samples (${[set.settings, set.problem].filter(Boolean)
        .join('; ')}), sha256 ${(set.sha256 ?? 'not known').slice(0, 16)}.`);
    paged(byId('examples-body'),
      [`Prompts with samples of both: ${shared.length}.`,
        ...new Set(counts)],
      (i) => {
        const prompt = make('div', 'text', samples.prompts[shared[i]]);
        prompt.dir = 'auto';
        return make('article', '',
          make('span', 'id', `prompt_id ${shared[i]}`), prompt,
          make('div', 'sides', sampleSide(sets[0], left.get(shared[i])),
            sampleSide(sets[1], right.get(shared[i]))));
      }, shared.length);
  }

  function startExamples() {
    if (!byId('kind')) return;
    samples.sets.forEach((set, index) => {
      const text = `${set.name}, ${set.file}`;
      byId('left').append(option(index, text));
      byId('right').append(option(index, text));
    });
    // Another run, if there is one, on the right.
    const other = samples.sets.findIndex((set) =>
      set.run !== samples.sets[0].run);
    if (samples.sets.length) {
      byId('right').value = other < 0 ? samples.sets.length - 1 : other;
    }
    byId('kind').addEventListener('change', chooseScopes);
    byId('scope').addEventListener('change', showPairs);
    byId('words').addEventListener('input', showPairs);
    byId('left').addEventListener('change', showSamples);
    byId('right').addEventListener('change', showSamples);
    if (byId('kind').options.length) chooseScopes();
  }

  startExamples();
})();
