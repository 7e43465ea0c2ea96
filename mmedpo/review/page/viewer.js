// Images of a pair side by side: zoom, pan, window and level, boxes. All panels show the same part of their images.

const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

export class Viewer {
  // `changed(boxes)` is called when a box was drawn or deleted.
  constructor(element, changed) {
    this.element = element;
    this.changed = changed;
    this.panels = [];
    this.pointers = new Map();
    this.drawing = false;
    this.outlined = true;
    this.blinking = null;
  }

  // `panels`: [{title, url, width, height, marked, side, place}], `place` of an image among those of its side. Boxes are
  // drawn on panels that are `marked`; new ones get `label`.
  show(panels, boxes, label) {
    this.stopBlinking();
    this.label = label;
    this.boxes = boxes;
    this.selected = -1;
    this.view = { x: 0, y: 0, w: 1, h: 1 };
    this.element.replaceChildren();
    this.panels = panels.map((panel) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.textContent = panel.title;
      const svg = make("svg", { role: "img", "aria-label": panel.title });
      svg.append(make("image", { href: panel.url, width: panel.width, height: panel.height, filter: "url(#window)" }));
      const marks = make("g");
      svg.append(marks);
      svg.classList.toggle("small", Math.max(panel.width, panel.height) <= 128);
      figure.append(caption, svg);
      this.element.append(figure);
      const made = { ...panel, figure, svg, marks };
      this.listen(made);
      return made;
    });
    this.draw();
  }

  draw() {
    for (const { svg, marks, width, height, marked, place } of this.panels) {
      const { x, y, w, h } = this.view;
      svg.setAttribute("viewBox", `${x * width} ${y * height} ${w * width} ${h * height}`);
      marks.replaceChildren();
      if (!marked || !this.outlined) continue;
      this.boxes.forEach((box, number) => {
        if ((box.image ?? 0) !== place) return;
        const frame = { x: box.x, y: box.y, width: box.width, height: box.height };
        const outline = make("rect", { ...frame, class: number === this.selected ? "box selected" : "box" });
        outline.addEventListener("pointerdown", (event) => {
          if (this.drawing) return;
          event.stopPropagation();
          this.selected = this.selected === number ? -1 : number;
          this.draw();
        });
        marks.append(make("rect", { ...frame, class: "under" }), outline);
      });
    }
  }

  fit() {
    this.view = { x: 0, y: 0, w: 1, h: 1 };
    this.draw();
  }

  zoom(factor, at = { x: this.view.x + this.view.w / 2, y: this.view.y + this.view.h / 2 }) {
    const size = Math.min(1, Math.max(0.02, this.view.w * factor));
    const scale = size / this.view.w;
    this.view = {
      x: at.x - (at.x - this.view.x) * scale, y: at.y - (at.y - this.view.y) * scale, w: size, h: this.view.h * scale,
    };
    this.keepInside();
  }

  keepInside() {
    const inside = (start, length) => Math.min(Math.max(start, 0), Math.max(0, 1 - length));
    this.view.x = inside(this.view.x, this.view.w);
    this.view.y = inside(this.view.y, this.view.h);
    this.draw();
  }

  // Grey values are shown as (value - level) / width + 1/2; the whole range is 255 wide around 127.5.
  window(width, level) {
    const slope = 255 / width;
    for (const part of document.querySelectorAll("#window feFuncR, #window feFuncG, #window feFuncB")) {
      part.setAttribute("slope", slope);
      part.setAttribute("intercept", 0.5 - (level / 255) * slope);
    }
  }

  outline() {
    this.outlined = !this.outlined;
    this.draw();
  }

  blink() {
    if (this.blinking) return this.stopBlinking();
    if (!this.panels.some(({ side }) => side)) return;
    let shown = 0;
    const turn = () => {
      for (const { figure, side } of this.panels) figure.hidden = side !== shown;
      shown = 1 - shown;
    };
    turn();
    this.blinking = setInterval(turn, 600);
  }

  stopBlinking() {
    clearInterval(this.blinking);
    this.blinking = null;
    for (const { figure } of this.panels) figure.hidden = false;
  }

  erase() {
    if (!this.boxes.length) return;
    this.boxes = this.selected < 0 ? [] : this.boxes.filter((_, number) => number !== this.selected);
    this.selected = -1;
    this.draw();
    this.changed(this.boxes);
  }

  point(panel, event) {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(panel.svg.getScreenCTM().inverse());
    return { x: place.x / panel.width, y: place.y / panel.height };
  }

  listen(panel) {
    const { svg } = panel;
    svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, this.point(panel, event));
    }, { passive: false });
    svg.addEventListener("pointerdown", (event) => {
      svg.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      this.start = this.point(panel, event);
      this.distance = this.spread();
      if (this.drawing && panel.marked) this.ghost = panel.marks.appendChild(make("rect", { class: "box selected" }));
    });
    svg.addEventListener("pointermove", (event) => {
      if (!this.pointers.has(event.pointerId)) return;
      this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (this.ghost) this.stretch(panel, event);
      else if (this.pointers.size === 2) {
        const distance = this.spread();
        this.zoom(this.distance / distance, this.start);
        this.distance = distance;
      } else {
        const here = this.point(panel, event);
        this.view.x += this.start.x - here.x;
        this.view.y += this.start.y - here.y;
        this.keepInside();
      }
    });
    const end = (event) => {
      this.pointers.delete(event.pointerId);
      if (!this.ghost) return;
      const side = (name) => Math.round(10 * Number(this.ghost.getAttribute(name) || 0)) / 10;
      const box = { x: side("x"), y: side("y"), width: side("width"), height: side("height") };
      this.ghost = null;
      this.drawing = false;
      if (event.type === "pointerup" && box.width >= 1 && box.height >= 1) {
        this.boxes = [...this.boxes, { label: this.label, ...box, confidence: 1, ...(panel.place ? { image: panel.place } : {}) }];
        this.changed(this.boxes);
      }
      this.draw();
    };
    svg.addEventListener("pointerup", end);
    svg.addEventListener("pointercancel", end);
  }

  spread() {
    const [one, other] = [...this.pointers.values()];
    return other ? Math.hypot(one.x - other.x, one.y - other.y) : 1;
  }

  stretch(panel, event) {
    const bound = (value) => Math.min(1, Math.max(0, value));
    const here = this.point(panel, event);
    const [x, right] = [bound(this.start.x), bound(here.x)].sort((a, b) => a - b);
    const [y, bottom] = [bound(this.start.y), bound(here.y)].sort((a, b) => a - b);
    const place = { x: x * panel.width, y: y * panel.height, width: (right - x) * panel.width, height: (bottom - y) * panel.height };
    for (const [name, value] of Object.entries(place)) this.ghost.setAttribute(name, value);
  }
}
