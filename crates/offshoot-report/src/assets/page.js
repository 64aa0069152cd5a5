(function () {
  "use strict";
  var table = document.getElementById("children");
  if (table) {
    var body = table.tBodies[0], rows = Array.prototype.slice.call(body.rows), heads = table.tHead.rows[0].cells;
    var form = document.querySelector(".filter"), find = document.getElementById("find");
    var most = document.getElementById("most"), front = document.getElementById("front"), shown = document.getElementById("shown");
    var filter = function () {
      var words = find.value.toLowerCase().split(/\s+/), limit = most.value === "" ? Infinity : Number(most.value) * 1e6, n = 0;
      rows.forEach(function (row) {
        var text = (row.cells[0].textContent + " " + row.cells[1].textContent).toLowerCase();
        var keep = words.every(function (word) { return text.indexOf(word) >= 0; }) &&
          Number(row.dataset.p) <= limit && (!front.checked || row.classList.contains("onfront"));
        row.hidden = !keep;
        n += keep ? 1 : 0;
      });
      shown.textContent = n + " of " + rows.length;
    };
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", function (event) { event.preventDefault(); });
    filter();
    Array.prototype.forEach.call(heads, function (head, column) {
      var button = document.createElement("button"), number = head.classList.contains("n"), first = number && head.dataset.best !== "least";
      button.type = "button";
      button.textContent = head.textContent;
      head.textContent = "";
      head.appendChild(button);
      button.addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") === (first ? "descending" : "ascending") ? !first : first;
        Array.prototype.forEach.call(heads, function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        rows.slice().sort(function (a, b) {
          var x = a.cells[column].dataset.v, y = b.cells[column].dataset.v;
          if (x === "" || y === "") { return (x === "" ? 1 : 0) - (y === "" ? 1 : 0); }
          var order = number ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
          return down ? -order : order;
        }).forEach(function (row) { body.appendChild(row); });
      });
    });
  }

  var tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.appendChild(tip);
  var show = function (text, event) {
    tip.textContent = text;
    tip.hidden = false;
    var left = Math.min(event.pageX + 14, window.scrollX + document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = event.pageY + 16 + "px";
  };
  var hide = function () { tip.hidden = true; };
  document.querySelectorAll("svg .dot, svg .cell").forEach(function (mark) {
    var title = mark.querySelector("title");
    if (!title) { return; }
    var text = title.textContent.split(" · ").join("\n");
    mark.setAttribute("aria-label", title.textContent);
    title.remove();
    mark.addEventListener("pointermove", function (event) { show(text, event); });
    mark.addEventListener("pointerleave", hide);
  });
  document.querySelectorAll("svg.panel").forEach(function (svg) {
    var curves = Array.prototype.map.call(svg.querySelectorAll("polyline[data-v]"), function (line) {
      return { name: line.dataset.name, places: line.getAttribute("points").split(" "), values: line.dataset.v.split(" ") };
    });
    if (!curves.length) { return; }
    svg.addEventListener("pointermove", function (event) {
      var box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      show(curves.map(function (curve) {
        var best = 0, distance = Infinity;
        curve.places.forEach(function (place, i) {
          var d = Math.abs(parseFloat(place) - x);
          if (d < distance) { distance = d; best = i; }
        });
        return (curve.name ? curve.name + ": " : "") + curve.values[2 * best + 1] + " at step " + curve.values[2 * best];
      }).join("\n"), event);
    });
    svg.addEventListener("pointerleave", hide);
  });

  var opened = [];
  window.addEventListener("beforeprint", function () {
    opened = Array.prototype.slice.call(document.querySelectorAll("details:not([open])"));
    opened.forEach(function (details) { details.open = true; });
  });
  window.addEventListener("afterprint", function () {
    opened.forEach(function (details) { details.open = false; });
  });
})();
