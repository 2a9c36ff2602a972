"use strict";
(async () => {
  const charts = [...document.querySelectorAll("[data-figure]")];
  const root = getComputedStyle(document.documentElement);
  const fail = (error) => {
    for (const chart of charts) chart.textContent = "This browser cannot draw the chart: " + error.message;
    throw error;
  };

  // The library is packed as gzip; as a script element it is let run by its checksum.
  try {
    const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  } catch (error) {
    fail(error);
  }

  // Colors stand in figures by name, for light and dark.
  const isColor = (key) => key !== undefined && (key.endsWith("color") || key === "colorscale" || key === "colors");
  const colored = (value, key) => {
    if (typeof value === "string") {
      return isColor(key) && value.startsWith("@") ? root.getPropertyValue("--" + value.slice(1)).trim() : value;
    }
    if (Array.isArray(value)) {
      return isColor(key) || typeof value[0] === "object" ? value.map((each) => colored(each, key)) : value;
    }
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, colored(each, name)]));
  };
  const figures = charts.map((chart) => JSON.parse(document.getElementById(chart.dataset.figure).textContent));
  // Where nothing hovers the buttons would stand over the chart for good, and a finger that scrolls would zoom.
  const canHover = matchMedia("(hover: hover)").matches;
  const options = { responsive: true, displaylogo: false, scrollZoom: false, displayModeBar: canHover ? "hover" : false,
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"], toImageButtonOptions: { format: "svg" } };
  const draw = (chart, place, width) => {
    const figure = colored(figures[place]);
    const layout = { ...figure.layout, autosize: width === undefined };
    // On a phone the scale of a matrix would leave no room for it: colors are in the description, numbers in the table.
    const isNarrow = width === undefined && chart.clientWidth < 480;
    for (const trace of figure.data) if (trace.meta === "scaled") trace.showscale = !isNarrow;
    if (isNarrow) layout.font = { ...layout.font, size: 11 };
    if (!canHover) layout.dragmode = false;
    if (width !== undefined) layout.width = Math.min(width, chart.parentElement.classList.contains("half") ? 520 : width);
    return Plotly.react(chart, figure.data, layout, options);
  };
  const drawn = new Set();
  const all = (width) => charts.forEach((chart, place) => { drawn.add(place); draw(chart, place, width); });

  // A chart is drawn when it comes into view: a page opens at once however many there are.
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const place = charts.indexOf(entry.target);
      if (entry.isIntersecting && !drawn.has(place)) {
        drawn.add(place);
        draw(entry.target, place);
        seen.unobserve(entry.target);
      }
    }
  }, { rootMargin: "600px" });
  charts.forEach((chart) => seen.observe(chart));

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const again = () => charts.forEach((chart, place) => { if (drawn.has(place)) draw(chart, place); });
  dark.addEventListener("change", again);
  const paper = 660; // pixels that fit between the margins of A4 and US letter
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("on-paper");
    document.querySelectorAll("details").forEach((each) => { each.dataset.open = each.open; each.open = each.querySelectorAll("tr").length <= 12; });
    all(paper);
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("on-paper");
    document.querySelectorAll("details").forEach((each) => { each.open = each.dataset.open === "true"; });
    again();
  });
  document.documentElement.dataset.ready = "true";
})();
