const find = (selector, root = document) => root.querySelector(selector);
const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];

// ---- Tables: a click on a heading sorts by it, another turns the order around; what has no value stays last.

function sort(table, column) {
  const headings = findAll("th", table.tHead);
  const order = headings[column].ariaSort === "ascending" ? "descending" : "ascending";
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].ariaSort = order;
  const sign = order === "ascending" ? 1 : -1;
  const value = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
    return sign * (Number(value(a)) - Number(value(b)) || value(a).localeCompare(value(b), "en", { numeric: true }));
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

for (const table of findAll(".sortable")) {
  const headings = findAll("th", table.tHead);
  headings[table.dataset.sorted].ariaSort = "ascending"; // as it was written
  headings.forEach((heading, column) => heading.addEventListener("click", () => sort(table, column)));
}

// ---- Arrays and plotly.js are embedded as base64 of their compressed bytes.

async function unpacked(text, Type) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Type(await new Response(stream).arrayBuffer());
}

let loaded;
const plotly = () => (loaded ??= loadPlotly());

async function loadPlotly() {
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await unpacked(find("#plotly").textContent, Uint8Array));
  document.head.append(script);
  return Plotly;
}

// ---- Charts: drawn when they come into sight. A click on a case opens it.

const figures = JSON.parse(find("#figures").textContent);
const CHART = { responsive: true, displayModeBar: false };

async function draw(chart) {
  const { data, layout } = figures[chart.dataset.figure];
  await (await plotly()).newPlot(chart, data, layout, CHART);
  chart.on("plotly_click", ({ points: [{ customdata }] }) => {
    const row = find(`tr[data-view="${customdata}"]`);
    if (row) show(row);
  });
}

const sight = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries)
      if (isIntersecting) {
        sight.unobserve(target);
        draw(target);
      }
  },
  { rootMargin: "300px" },
);
findAll(".chart").forEach((chart) => sight.observe(chart));

// ---- Viewer. Arrays lie as (z, y, x); z grows towards the head, so planes that show it have it upwards.

const viewer = find("#viewer");
const PLANES = [
  { axis: 0, down: 1, right: 2, upwards: false },
  { axis: 1, down: 0, right: 2, upwards: true },
  { axis: 2, down: 0, right: 1, upwards: true },
].map((plane) => {
  const figure = find(`figure[data-axis="${plane.axis}"]`);
  return { ...plane, canvas: find("canvas", figure), slider: find("input", figure), text: find("span", figure) };
});
const SCALE = [[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]]; // plasma
const TRUTH = "truth";

let row; // of the table, whose case is shown
let view; // the case
let at; // sample (z, y, x) where the planes cross

const layers = () => [{ name: TRUTH, colour: view.truth.colour, label: view.truth.label }, ...view.methods];
const shown = () => layers().filter((_, i) => find(`#layers [value="${i}"]`).checked);
const structure = () => Number(find("#structure select").value); // from 1; 0 stands for all
const voxel = (axis, sample) => Math.floor(((sample + 0.5) * view.size[axis]) / view.shape[axis]);
const offset = (z, y, x) => (z * view.shape[1] + y) * view.shape[2] + x;

async function numbers({ unit, data }) {
  return Float32Array.from(await unpacked(data, Uint16Array), (value) => value * unit);
}

// A JPEG whose rows are those of all slices, one after the other.
async function grey(jpeg) {
  const image = new Image();
  image.src = `data:image/jpeg;base64,${jpeg}`;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height).data.filter((_, i) => i % 4 === 0);
}

async function decoded(packed) {
  const surface = async (mesh) => mesh && {
    vertices: await numbers(mesh.vertices),
    faces: await unpacked(mesh.faces, Uint16Array),
    distances: mesh.distances && (await numbers(mesh.distances)),
  };
  const method = async (one) => ({
    ...one,
    label: await unpacked(one.label, Uint8Array),
    probability: one.probability && (await unpacked(one.probability, Uint8Array)),
    surfaces: await Promise.all(one.surfaces.map(surface)),
  });
  const truth = { ...packed.truth, label: await unpacked(packed.truth.label, Uint8Array) };
  return { ...packed, image: await grey(packed.image), truth, methods: await Promise.all(packed.methods.map(method)) };
}

async function show(chosen) {
  row = chosen;
  const found = await decoded(JSON.parse(find(`#view-${chosen.dataset.view}`).textContent));
  if (row !== chosen) return; // another was opened meanwhile
  view = found;
  find("h2", viewer).textContent = view.name;
  find("#scores").innerHTML = view.scores;
  find("#voxel").textContent = "";
  viewer.classList.toggle("flat", view.shape[0] === 1);

  const options = (names, first) => names.map((name, i) => new Option(name, i + first));
  const last = view.methods.length - 1;
  const box = ({ name, colour }, i) => {
    const label = document.createElement("label");
    label.innerHTML = `<input type="checkbox" value="${i}"> <i class="swatch" style="background:${colour}"></i>`;
    label.append(name);
    find("input", label).checked = name === TRUTH || view.methods[i - 1].shown;
    return label;
  };
  find("#layers").replaceChildren(...layers().map(box));
  find("#structure select").replaceChildren(new Option("all", 0), ...options(view.structures, 1));
  find("#structure").hidden = view.structures.length === 1;
  find("#structure select").value = chosen.dataset.structure;
  const names = view.methods.map(({ name }) => name);
  find("#probability select").replaceChildren(new Option("hidden", -1), ...options(names, 0));
  find("#probability").hidden = !view.methods.every(({ probability }) => probability);
  find("#coloured select").replaceChildren(...options(names, 0));
  find("#coloured select").value = last;

  if (!viewer.open) viewer.showModal();
  for (const { axis, slider } of PLANES) slider.max = view.shape[axis] - 1;
  PLANES[0].slider.focus();
  move(centre());
  drawSurface();
}

// The centroid of the structure in the truth, else in an answer, else the middle of the volume.
function centre() {
  const k = structure();
  for (const { label } of [view.truth, ...view.methods]) {
    const sum = [0, 0, 0, 0];
    for (let z = 0, i = 0; z < view.shape[0]; z++)
      for (let y = 0; y < view.shape[1]; y++)
        for (let x = 0; x < view.shape[2]; x++, i++)
          if (k ? label[i] === k : label[i]) [z, y, x, 1].forEach((value, axis) => (sum[axis] += value));
    if (sum[3]) return sum.slice(0, 3).map((value) => Math.round(value / sum[3]));
  }
  return view.shape.map((n) => Math.floor(n / 2));
}

function move(place) {
  at = place;
  for (const { axis, slider, text } of PLANES) {
    slider.value = at[axis];
    text.textContent = `${"zyx"[axis]} = ${voxel(axis, at[axis])} of ${view.size[axis]}`;
  }
  PLANES.forEach(drawPlane);
}

// Where the samples of a plane lie on its canvas.
function geometry({ canvas, down, right, upwards }) {
  const [rows, columns] = [view.shape[down], view.shape[right]];
  const mm = Math.min(canvas.width / (columns * view.spacing[right]), canvas.height / (rows * view.spacing[down]));
  const [width, height] = [mm * view.spacing[right], mm * view.spacing[down]];
  const [left, top] = [(canvas.width - columns * width) / 2, (canvas.height - rows * height) / 2];
  const x = (edge) => Math.round(left + width * edge);
  const y = (edge) => Math.round(top + height * (upwards ? rows - edge : edge));
  return { rows, columns, width, height, left, top, x, y };
}

function drawPlane(plane) {
  const { canvas, axis, down, right, upwards } = plane;
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = canvas.clientHeight * devicePixelRatio;
  if (!canvas.width || !canvas.height) return;
  const { rows, columns, width, height, left, top, x, y } = geometry(plane);
  const stride = [offset(1, 0, 0), offset(0, 1, 0), 1];
  const index = (r, c) => at[axis] * stride[axis] + r * stride[down] + c * stride[right];

  // Grey values under the probability
  const pixels = new ImageData(columns, rows);
  const probability = probabilityAt();
  for (let r = 0, i = 0; r < rows; r++)
    for (let c = 0; c < columns; c++, i += 4) {
      const sample = index(upwards ? rows - 1 - r : r, c);
      const p = probability(sample);
      const cover = Math.min(0.55, 2 * p);
      const colour = ramp(p);
      for (let channel = 0; channel < 3; channel++)
        pixels.data[i + channel] = (1 - cover) * view.image[sample] + cover * colour[channel];
      pixels.data[i + 3] = 255;
    }
  const slice = new OffscreenCanvas(columns, rows);
  slice.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.drawImage(slice, left, top, columns * width, rows * height);

  // Outlines along the edges of samples, the truth's wider, so that both are seen where they agree
  const k = structure();
  for (const { name, colour, label } of shown()) {
    const value = (r, c) => {
      const found = r < 0 || c < 0 || r === rows || c === columns ? 0 : label[index(r, c)];
      return k && found !== k ? 0 : found;
    };
    context.beginPath();
    for (let r = 0; r <= rows; r++)
      for (let c = 0; c <= columns; c++) {
        if (value(r, c) !== value(r, c - 1)) context.moveTo(x(c), y(r)), context.lineTo(x(c), y(r + 1));
        if (value(r, c) !== value(r - 1, c)) context.moveTo(x(c), y(r)), context.lineTo(x(c + 1), y(r));
      }
    context.strokeStyle = colour;
    context.lineWidth = (name === TRUTH ? 4 : 2) * devicePixelRatio;
    context.stroke();
  }

  // Where the other planes are
  if (view.shape[0] > 1) {
    context.beginPath();
    context.moveTo(x(at[right] + 0.5), y(0)), context.lineTo(x(at[right] + 0.5), y(rows));
    context.moveTo(x(0), y(at[down] + 0.5)), context.lineTo(x(columns), y(at[down] + 0.5));
    context.strokeStyle = "rgba(255, 255, 255, 0.3)";
    context.lineWidth = devicePixelRatio;
    context.stroke();
  }
}

// sample -> probability of the chosen method and structure, of the likeliest one where all are shown.
function probabilityAt() {
  const map = view.methods[find("#probability select").value]?.probability;
  if (!map) return () => 0;
  const [k, n] = [structure(), view.image.length];
  if (k) return (sample) => map[(k - 1) * n + sample] / 255;
  return (sample) => Math.max(...view.structures.map((_, s) => map[s * n + sample])) / 255;
}

function ramp(p) {
  const place = p * (SCALE.length - 1);
  const low = Math.min(Math.floor(place), SCALE.length - 2);
  return SCALE[low].map((from, channel) => from + (place - low) * (SCALE[low + 1][channel] - from));
}

async function drawSurface() {
  if (view.shape[0] === 1) return;
  const { react } = await plotly();
  const { surfaces } = view.methods[find("#coloured select").value];
  const columns = (values) => {
    const n = values.length / 3;
    return [0, 1, 2].map((k) => values.subarray(k * n, k * n + n));
  };
  const scene = { aspectmode: "data", bgcolor: "#000", camera: { eye: { x: 1.6, y: 1.6, z: 1 } } };
  for (const axis of "xyz")
    scene[`${axis}axis`] = { title: { text: `${axis} (mm)` }, color: "#949ba6", gridcolor: "#343942" };
  const traces = surfaces.flatMap((mesh, s) => {
    if (!mesh || (structure() && structure() !== s + 1)) return [];
    const [[z, y, x], [i, j, k]] = [columns(mesh.vertices), columns(mesh.faces)];
    const look = mesh.distances ? { intensity: mesh.distances, coloraxis: "coloraxis" } : { color: "#949ba6" };
    const told = mesh.distances ? ": %{intensity:.2f} mm" : ", not in the truth";
    const hovertemplate = `${view.structures[s]}${told}<extra></extra>`;
    return [{ type: "mesh3d", x, y, z, i, j, k, ...look, hovertemplate, lighting: { ambient: 0.6, diffuse: 0.7 } }];
  });
  const bar = { title: { text: "mm" }, tickfont: { color: "#d9dde3" }, len: 0.8, thickness: 14 };
  const layout = {
    scene,
    coloraxis: { colorscale: "Viridis", cmin: 0, cmax: view.farthest, colorbar: bar },
    annotations: traces.length ? [] : [{ text: "nothing predicted", showarrow: false }],
    xaxis: { visible: false },
    yaxis: { visible: false },
    margin: { l: 0, r: 0, t: 0, b: 0 },
    paper_bgcolor: "#000",
    plot_bgcolor: "#000",
    font: { color: "#d9dde3" },
    uirevision: view.name, // keeps the camera while methods are compared
  };
  react("surface", traces, layout, CHART);
}

function step(direction) {
  let next = row;
  do next = direction < 0 ? next.previousElementSibling : next.nextElementSibling;
  while (next && !next.dataset.view);
  if (next) show(next);
}

// The sample under the pointer.
function pointed(plane, event) {
  const { rows, columns, width, height, left, top } = geometry(plane);
  const c = Math.floor((event.offsetX * devicePixelRatio - left) / width);
  const r = Math.floor((event.offsetY * devicePixelRatio - top) / height);
  if (r < 0 || c < 0 || r >= rows || c >= columns) return null;
  const place = [...at];
  [place[plane.down], place[plane.right]] = [plane.upwards ? rows - 1 - r : r, c];
  return place;
}

function describe(place) {
  const sample = offset(...place);
  const lines = [`voxel (z, y, x): ${place.map((value, axis) => voxel(axis, value)).join(", ")}`];
  for (const { name, label, probability } of layers()) {
    const maps = probability ? view.structures.map((_, s) => probability[s * view.image.length + sample] / 255) : [];
    const p = maps.length ? `, p = ${Math.max(...maps).toFixed(2)}` : "";
    lines.push(`${name}: ${view.structures[label[sample] - 1] ?? "background"}${p}`);
  }
  return lines.join("\n");
}

for (const plane of PLANES) {
  plane.slider.addEventListener("input", () => move(at.with(plane.axis, Number(plane.slider.value))));
  plane.canvas.addEventListener("mousemove", (event) => {
    const place = pointed(plane, event);
    find("#voxel").textContent = place ? describe(place) : "";
  });
  plane.canvas.addEventListener("click", (event) => {
    const place = pointed(plane, event);
    if (place) move(place);
    plane.slider.focus();
  });
  plane.canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const slice = at[plane.axis] - Math.sign(event.deltaY);
    move(at.with(plane.axis, Math.max(0, Math.min(view.shape[plane.axis] - 1, slice))));
    plane.slider.focus();
  });
}
const redraw = () => PLANES.forEach(drawPlane);
find("#layers").addEventListener("change", redraw);
find("#probability select").addEventListener("change", redraw);
find("#coloured select").addEventListener("change", drawSurface);
find("#structure select").addEventListener("change", () => {
  move(centre());
  drawSurface();
});
find("#before").addEventListener("click", () => step(-1));
find("#after").addEventListener("click", () => step(1));
find("#close").addEventListener("click", () => viewer.close());
addEventListener("resize", () => viewer.open && redraw());
find("#probability i").style.background = `linear-gradient(90deg, ${SCALE.map((colour) => `rgb(${colour})`)})`;
for (const line of findAll("tr[data-view]")) line.addEventListener("click", () => show(line));
