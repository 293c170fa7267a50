"use strict";
(() => {
  const form = document.getElementById("filters");
  const list = document.getElementById("items");
  const count = document.getElementById("count");
  const none = document.getElementById("none");
  const items = [...list.children];
  // A value that is missing comes last in every order.
  const by = (key, sign) => (a, b) => {
    const [x, y] = [a.dataset[key], b.dataset[key]];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (Number(x) - Number(y));
  };
  const orders = {
    worst: null, // as the page has them
    best: by("worst", 1),
    tilt: by("tilt", -1),
    margin: by("margin", 1),
    cd: by("cd", -1),
    name: (a, b) => a.dataset.text.localeCompare(b.dataset.text, undefined, { numeric: true }),
  };
  let order = "worst";
  const update = () => {
    const wanted = Object.fromEntries(new FormData(form));
    const words = wanted.text.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const item of items) {
      const data = item.dataset;
      const fired = data.guard.split(" ");
      const keep = words.every((word) => data.text.includes(word))
        && (!wanted.kind || data.kind === wanted.kind.slice(1))
        && (!wanted.category || data.category === wanted.category.slice(1))
        && (!wanted.guard || (wanted.guard === "=any" ? data.guard !== ""
          : fired.includes(wanted.guard.slice(1))));
      item.hidden = !keep;
      shown += keep;
    }
    if (wanted.order !== order) {
      order = wanted.order;
      list.append(...(orders[order] ? [...items].sort(orders[order]) : items));
    }
    count.textContent = `${shown} of ${items.length} meshes`;
    none.hidden = shown > 0;
  };
  form.addEventListener("input", update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update(); // a browser may have kept what was chosen before the page was loaded again
})();
