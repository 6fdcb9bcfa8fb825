"use strict";
(() => {
  const find = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const read = (id) => JSON.parse(find(`#${id}`)?.textContent ?? "null");
  const SVG = "http://www.w3.org/2000/svg";

  // Creates an element. String children become text nodes, so class names cannot inject markup.
  const make = (tag, attributes = {}, ...children) => {
    const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  all(".control").forEach((control) => { control.hidden = false; });

  // Sortable tables.
  const sort = (table, column, direction) => {
    const body = find("tbody", table);
    const rows = all("tr", body).map((row) => [row.cells[column].dataset.value, row]);
    const numbers = rows.every(([value]) => value !== "" && Number.isFinite(Number(value)));
    const compare = numbers ? (a, b) => a - b : (a, b) => a.localeCompare(b);
    rows.sort(([a], [b]) => direction * compare(a, b));
    body.append(...rows.map(([, row]) => row));
  };
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        sort(table, column, direction);
      });
    });
  }

  // Query menu.
  const queries = find("#query-choice");
  const select = () => {
    for (const query of all(".query")) {
      const { number } = query.dataset;
      const isShown = { all: true, some: number < Number(queries.dataset.some) }[queries.value] ?? number === queries.value;
      query.hidden = !isShown;
    }
  };
  if (queries) {
    queries.addEventListener("change", select);
    select();
  }

  // Images are enlarged by a click, Enter or Space. A click or Escape closes them.
  const large = make("dialog", { class: "large", "aria-label": "enlarged image" });
  large.addEventListener("click", () => large.close());
  document.body.append(large);
  for (const image of all("main img")) {
    const open = () => {
      const picture = make("img", { src: image.src, alt: "" });
      picture.toggleAttribute("data-tiny", image.hasAttribute("data-tiny"));
      large.replaceChildren(picture, make("p", {}, image.alt), make("button", { type: "button" }, "Close"));
      large.showModal();
    };
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.addEventListener("click", open);
    image.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      open();
    });
  }

  // Confusion tables of one coarse class.
  const confusion = read("confusion-data");
  if (confusion) {
    const table = (group, counts, run) => {
      const cut = group.classes.length < group.of;
      const outside = cut ? "other classes" : "outside this class";
      const columns = [...group.classes, ...(counts.some((row) => row.at(-1)) ? [outside] : [])];
      const note = cut ? `, ${group.classes.length} of ${group.of} classes with the most errors` : "";
      const title = `${confusion.runs.length > 1 ? `${run}: ` : ""}${group.name}${note}`;
      const body = counts.map((row, i) => {
        const images = row.reduce((a, b) => a + b, 0);
        const cells = columns.map((_, j) => {
          const cell = make("td", { class: i === j ? "right" : "wrong" }, String(row[j]));
          cell.style.setProperty("--share", `${images ? (45 * row[j]) / images : 0}%`);
          return cell;
        });
        return make("tr", {}, make("th", { scope: "row" }, group.classes[i]), ...cells);
      });
      const head = ["class", ...columns].map((name) => make("th", { scope: "col" }, name));
      return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
        make("table", { class: "confusion" }, make("caption", {}, title),
          make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)));
    };
    const show = () => {
      const group = confusion.groups[find("#confusion-choice").value];
      const tables = confusion.runs.map((run, i) => table(group, group.counts[i], run));
      find("#confusion-tables").replaceChildren(...tables);
    };
    find("#confusion-choice").addEventListener("change", show);
    show();
  }

  // Embedding maps. One image is selected at a time, in all maps, by mouse, touch or arrow keys.
  const data = read("map-data");
  if (!data) return;
  const SHAPES = [
    "M-15,0a15,15 0 1,0 30,0a15,15 0 1,0 -30,0z", "M-13,-13h26v26h-26z", "M0,-17L16,13H-16z", "M0,-18L18,0L0,18L-18,0z",
    "M-17,-6h11v-11h12v11h11v12h-11v11h-12v-11h-11z", "M0,17L16,-13H-16z",
    "M-15,-9L0,-17L15,-9V9L0,17L-15,9z",
  ];
  const symbol = (group) => ({ d: SHAPES[group % SHAPES.length], style: `fill:var(--c${group % 8})` });
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const THUMBNAIL = 96;
  let chosen = -1;
  let highlighted = "";
  const isShown = (i) => highlighted === "" || data.group[i] === Number(highlighted);
  const described = (i) => {
    const name = data.classes[data.class[i]];
    return data.twoLevels ? `${name} (${data.groups[data.group[i]]})` : name;
  };

  const views = data.maps.map((map) => {
    const at = map.points.map(([x, y]) => [x, -y]);
    const points = at.map(([x, y], i) =>
      make("svg:path", { class: "point", transform: `translate(${x} ${y})`, ...symbol(data.group[i]) }));
    const ring = make("svg:circle", { class: "ring", r: 34, visibility: "hidden" });
    const tip = make("div", { class: "tip", hidden: "" }, make("div"), make("span"));
    const status = make("p", { class: "note status", role: "status" });
    const range = (axis) => {
      const values = at.map((point) => point[axis]);
      const low = Math.min(...values) - 60;
      return [low, Math.max(...values) + 60 - low];
    };
    const [left, width] = range(0);
    const [top, tall] = range(1);
    const height = Math.max(tall, width / 2);
    const upper = top - (height - tall) / 2;
    const frame = make("div", {
      class: "map", tabindex: "0", role: "application",
      "aria-label": `${map.name}: map of ${at.length} images. Arrow keys move from image to image.`,
    }, make("svg:svg", { viewBox: `${left} ${upper} ${width} ${height}`, "aria-hidden": "true" }, ...points, ring), tip);
    const [across, up] = map.shares;
    const caption = `${map.name}, ${map.layer}: explained variance ${across} % (horizontal), ${up} % (vertical)`;
    const figure = make("figure", {}, frame, make("figcaption", {}, caption), status);
    const view = { at, frame, tip, ring, status, points, left, width, upper, height };

    const near = (event, within) => {
      const box = frame.getBoundingClientRect();
      const scale = width / box.width;
      const x = left + (event.clientX - box.left) * scale;
      const y = upper + (event.clientY - box.top) * scale;
      return nearest(view, ([a, b]) => Math.hypot(a - x, b - y), within * scale);
    };
    frame.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse") choose(near(event, 24), view);
    });
    frame.addEventListener("pointerdown", (event) => choose(near(event, 48), view));
    frame.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && document.activeElement !== frame) choose(-1, view);
    });
    frame.addEventListener("focus", () => {
      if (!frame.matches(":focus-visible")) return; // focused by a pointer, which has already chosen
      const centre = ([x, y]) => Math.hypot(x - left - width / 2, y - upper - height / 2);
      choose(chosen < 0 ? nearest(view, centre) : chosen, view);
    });
    frame.addEventListener("blur", () => choose(-1, view));
    frame.addEventListener("keydown", (event) => {
      const direction = ARROWS[event.key];
      if (event.key === "Escape") choose(-1, view);
      if (!direction) return;
      event.preventDefault();
      const from = chosen < 0 ? nearest(view, ([x, y]) => Math.hypot(x, y)) : chosen;
      const [x, y] = at[from];
      const next = nearest(view, ([a, b], i) => {
        const along = (a - x) * direction[0] + (b - y) * direction[1];
        const aside = Math.abs((a - x) * direction[1]) + Math.abs((b - y) * direction[0]);
        return i === from || along <= 0 || aside > along ? Infinity : along + 2 * aside;
      });
      choose(next < 0 ? from : next, view);
    });
    return { ...view, figure };
  });

  // Returns the visible image with the smallest distance below the limit, or -1.
  function nearest({ at }, distance, limit = Infinity) {
    let best = -1;
    at.forEach((point, i) => {
      const d = isShown(i) ? distance(point, i) : Infinity;
      if (d < limit) [best, limit] = [i, d];
    });
    return best;
  }

  function choose(i, active) {
    chosen = i;
    for (const { at, frame, ring, tip, status, left, width, upper, height } of views) {
      ring.setAttribute("visibility", i < 0 ? "hidden" : "visible");
      tip.hidden = i < 0 || frame !== active.frame;
      if (i < 0) {
        status.textContent = "";
        continue;
      }
      const [x, y] = at[i];
      ring.setAttribute("cx", x);
      ring.setAttribute("cy", y);
      if (tip.hidden) continue;
      const [picture, words] = tip.children;
      picture.style.backgroundPosition =
        `-${(i % data.columns) * THUMBNAIL}px -${Math.floor(i / data.columns) * THUMBNAIL}px`;
      words.textContent = described(i);
      status.textContent = `test/${data.id[i]}: ${described(i)}`;
      const across = (x - left) / width;
      const down = (y - upper) / height;
      tip.style.left = `${100 * across}%`;
      tip.style.top = `${100 * down}%`;
      tip.style.transform = `translate(${across > 0.5 ? "calc(-100% - 14px)" : "14px"}, ${-100 * down}%)`;
    }
  }

  for (const { tip, figure } of views) {
    tip.firstChild.style.backgroundImage = `url("${data.sheet}")`;
    tip.firstChild.style.backgroundSize = `${data.columns * THUMBNAIL}px auto`;
    find("#maps").append(figure);
  }
  find("#map-choice").addEventListener("change", ({ target }) => {
    highlighted = target.value;
    for (const { points } of views) points.forEach((point, i) => point.classList.toggle("dim", !isShown(i)));
  });
  if (data.groups.length <= SHAPES.length * 8) {
    find("#maps").after(make("ul", { class: "legend" }, ...data.groups.map((name, i) =>
      make("li", {}, make("svg:svg", { viewBox: "-20 -20 40 40", "aria-hidden": "true" },
        make("svg:path", symbol(i))), name))));
  }
})();
