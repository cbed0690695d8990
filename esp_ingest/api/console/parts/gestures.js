// Moving and zooming a chart by mouse, touch and keyboard. uPlot itself has the drag that selects a range.

/** Listen on the plotting area of a chart. `view()` gives {from, to}; `go(from, to)` changes it. */
export function pointerGestures(over, view, go) {
  const pointers = new Map();
  let start = null;

  const shareOf = (clientX) => {
    const box = over.getBoundingClientRect();
    return Math.min(Math.max((clientX - box.left) / box.width, 0), 1);
  };
  const begin = () => {
    start = { view: view(), points: [...pointers.values()].map((each) => shareOf(each)) };
  };

  over.addEventListener("wheel", (event) => {
    const { from, to } = view();
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      const factor = Math.exp(Math.max(-1, Math.min(1, event.deltaY / 200)));
      const at = from + (to - from) * shareOf(event.clientX);
      go(at - (at - from) * factor, at + (to - at) * factor);
    } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      const by = (event.deltaX / over.clientWidth) * (to - from);
      go(from + by, to + by);
    }
  }, { passive: false });

  over.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && !event.shiftKey) return;
    over.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event.clientX);
    begin();
  });
  over.addEventListener("mousedown", (event) => {
    if (event.shiftKey) event.stopImmediatePropagation(); // moves the view and selects nothing
  }, { capture: true });
  over.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId) || !start) return;
    pointers.set(event.pointerId, event.clientX);
    const now = [...pointers.values()].map((each) => shareOf(each));
    const { from, to } = start.view;
    const wide = to - from;
    if (now.length === 1) {
      const by = (start.points[0] - now[0]) * wide;
      go(from + by, to + by);
    } else if (now.length === 2) {
      const before = Math.max(Math.abs(start.points[1] - start.points[0]), 0.02);
      const after = Math.max(Math.abs(now[1] - now[0]), 0.02);
      const width = (wide * before) / after;
      const held = from + wide * ((start.points[0] + start.points[1]) / 2);
      const left = held - width * ((now[0] + now[1]) / 2);
      go(left, left + width);
    }
  });
  const end = (event) => {
    if (pointers.delete(event.pointerId)) begin();
  };
  over.addEventListener("pointerup", end);
  over.addEventListener("pointercancel", end);
  over.addEventListener("dblclick", (event) => {
    const { from, to } = view();
    const at = from + (to - from) * shareOf(event.clientX);
    go(at - (at - from) * 4, at + (to - at) * 4);
  });
}

/** What a key does to a view: {from, to}, "now", or null for nothing. */
export function keyStep(event, { from, to }) {
  if (event.ctrlKey || event.metaKey || event.altKey) return null;
  const wide = to - from;
  const move = (share) => ({ from: from + wide * share, to: to + wide * share });
  const zoom = (factor) => ({ from: (from + to) / 2 - (wide * factor) / 2, to: (from + to) / 2 + (wide * factor) / 2 });
  switch (event.key) {
    case "ArrowLeft": return move(event.shiftKey ? -1 : -0.2);
    case "ArrowRight": return move(event.shiftKey ? 1 : 0.2);
    case "+": case "=": return zoom(0.5);
    case "-": case "_": return zoom(2);
    case "End": return "now";
    default: return null;
  }
}
