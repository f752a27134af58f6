// The film of a training: window.FILMS (film-data.js, made by site/film_data.py) as sliders,
// two charts and the answers. No library, no requests: it works from the disk.
"use strict";

(() => {
  const SHOWN = 6; // answers at a time
  const films = window.FILMS;
  const root = document.getElementById("film");
  const at = { group: 0, run: films[0].opens, look: 0, first: 0 };

  const el = (name, attributes = {}, ...children) => {
    const svg = ["svg", "path", "line", "text", "circle"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const percent = (share) => `${Math.round(100 * share)}%`;
  const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);

  const group = () => films[at.group];
  const run = () => group().runs[at.run];
  const look = () => run().looks[at.look];

  // Controls, made once.
  const groups = el("select", { id: "film-group" }, ...films.map((f, i) => el("option", { value: i }, f.name)));
  const runs = el("input", { id: "film-run", type: "range", min: 0, step: 1 });
  const steps = el("input", { id: "film-step", type: "range", min: 0, step: 1, value: 0 });
  const runName = el("output", { for: "film-run" });
  const stepName = el("output", { for: "film-step" });
  const play = el("button", { type: "button", id: "film-play" }, "Play");
  const more = el("button", { type: "button", id: "film-more" }, "Other prompts");
  const numbers = el("dl", { class: "numbers", "aria-live": "polite" });
  const charts = el("div", { class: "charts" });
  const answers = el("ol", { class: "answers" });
  const control = (input, text, shown = "") =>
    el("div", {}, el("label", { for: input.id }, text, shown), input);

  // A chart of lines over the steps: [{label, values}] for the looks of the run.
  const chart = (title, lines) => {
    const [width, height, left, bottom] = [380, 190, 44, 24];
    const xs = run().looks.map((l) => l.step);
    const all = lines.flatMap((line) => line.values).concat(0);
    const [low, high] = [Math.min(...all), Math.max(...all, 0.1)];
    const x = (step) => left + ((width - left - 12) * step) / xs[xs.length - 1];
    const y = (value) => 10 + ((height - bottom - 10) * (high - value)) / (high - low);
    const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
    for (const value of new Set([low, 0, high])) {
      svg.append(el("line", { class: "axis", x1: left, x2: width - 12, y1: y(value), y2: y(value) }));
      if (value !== 0 || low > -high / 8) svg.append(el("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(1)));
    }
    for (const step of [xs[0], xs[xs.length - 1]])
      svg.append(el("text", { x: x(step), y: height - 6, "text-anchor": step ? "end" : "start" }, `step ${step}`));
    svg.append(el("line", { class: "now", x1: x(look().step), x2: x(look().step), y1: 8, y2: height - bottom }));
    lines.forEach(({ values }, i) => {
      svg.append(el("path", { class: `line c${i}`, d: "M" + values.map((v, n) => `${x(xs[n])} ${y(v)}`).join("L") }));
      svg.append(el("circle", { class: `d${i}`, cx: x(look().step), cy: y(values[at.look]), r: 4.5 }));
    });
    const names = lines.map(({ label }, i) => el("span", {}, i ? " · " : "", el("span", { class: `key k${i}`, "aria-hidden": "true" }, "● "), label));
    return el("figure", {}, svg, el("figcaption", {}, `${title}: `, ...names));
  };

  const draw = () => {
    const { judges, queries } = group();
    const now = look(), start = run().looks[0];
    runs.max = group().runs.length - 1;
    runs.value = at.run;
    steps.max = run().looks.length - 1;
    steps.value = at.look;
    runName.textContent = run().name;
    stepName.textContent = `${now.step} of ${run().looks.at(-1).step}`;
    runs.setAttribute("aria-valuetext", run().name);
    steps.setAttribute("aria-valuetext", `step ${now.step}`);

    const shown = [
      ...judges.map((judge, j) => [judge, `${now.means[j].toFixed(2)} (${signed(now.means[j] - start.means[j])})`]),
      ["KL weight", `${run().weight}`],
      ["KL per answer, nats", now.kl.toFixed(1)],
      [`begin with “${now.opening}”`, percent(now.share)],
      ["end in a sentence", percent(now.ended)],
      ["words", now.words.toFixed(1)],
    ];
    numbers.replaceChildren(...shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

    const over = (value) => run().looks.map(value);
    charts.replaceChildren(
      chart("Gain in score", judges.map((label, j) => ({ label, values: over((l) => l.means[j] - start.means[j]) }))),
      chart("KL to the reference", [{ label: "nats per answer", values: over((l) => l.kl) }]),
    );

    const which = Array.from({ length: SHOWN }, (_, i) => (at.first + i) % queries.length);
    answers.replaceChildren(...which.map((i) => el(
      "li", now.answers[i] === start.answers[i] ? {} : { class: "changed" },
      el("q", {}, queries[i]),
      el("span", {}, now.answers[i] || "(nothing)"),
      el("small", {}, judges.map((judge, j) => `${judge}: ${now.scores[j][i].toFixed(2)} (${signed(now.scores[j][i] - start.scores[j][i])})`).join(" · ")),
    )));
  };

  groups.addEventListener("change", () => { Object.assign(at, { group: +groups.value, run: films[+groups.value].opens, look: 0, first: 0 }); draw(); });
  runs.addEventListener("input", () => { at.run = +runs.value; at.look = Math.min(at.look, run().looks.length - 1); draw(); });
  steps.addEventListener("input", () => { at.look = +steps.value; draw(); });
  more.addEventListener("click", () => { at.first = (at.first + SHOWN) % group().queries.length; draw(); });

  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (at.look === run().looks.length - 1) at.look = 0;
    play.textContent = "Pause";
    draw();
    timer = setInterval(() => { at.look += 1; draw(); if (at.look === run().looks.length - 1) stop(); }, 1500);
  });
  for (const input of [groups, runs, steps]) input.addEventListener("pointerdown", () => timer && stop());

  root.replaceChildren(
    el("div", { class: "controls" }, control(groups, "Trainings"), control(runs, "Training: ", runName)),
    el("div", { class: "steps" }, control(steps, "Step ", stepName), play),
    numbers, charts, answers, el("div", {}, more),
  );
  draw();
})();
