#!/usr/bin/env bash
# Draws results.csv as figure.svg, and as figure.png where chromium is installed: figure.sh results.csv [FOLDER]
set -euo pipefail
csv=$1
folder=${2:-$(dirname "$csv")}
awk -F, '
    BEGIN { sizes = 0 }
    function at(i) { return left + (i + 0.5) * inner / sizes }
    function high(v) { return top + height * (ceiling - v) / (ceiling - floor) }
    function text(class, x, y, s) { printf "<text class=\"%s\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", class, x, y, s }
    function mark(shape, x, y, colour, faint) {
        if (shape == "square") printf "<rect x=\"%.1f\" y=\"%.1f\" width=\"9\" height=\"9\"", x - 4.5, y - 4.5
        else if (shape == "triangle") printf "<path d=\"M%.1f %.1f l5.6 9.6 h-11.2 z\"", x, y - 6
        else if (shape == "diamond") printf "<path d=\"M%.1f %.1f l6 6 l-6 6 l-6 -6 z\"", x, y - 6
        else printf "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\"", x, y
        printf faint ? " fill=\"none\" stroke=\"%s\" stroke-opacity=\"0.75\" stroke-width=\"1.4\"/>\n" : " fill=\"%s\"/>\n", colour
    }
    # The mean over seeds of a series, a metric and a size, and how many there are.
    function mean(s, m, i,   n, sum, k) {
        sum = 0; seeds = 0
        n = split(list[s, m, i], values, " ")
        for (k = 1; k <= n; k++) { sum += values[k]; seeds++ }
        return n ? sum / n : -1
    }
    NR > 1 {
        series = $1 ~ /^alone-/ ? "alone" : $1
        # Sizes from left to right: in the order of the elastic run, which comes first.
        if (!($3 in place)) { place[$3] = sizes; parameters[sizes] = $4; name[sizes++] = $3 }
        size = place[$3]
        list[series, $5, size] = list[series, $5, size] " " 100 * $6
        if (!($5 in least) || 100 * $6 < least[$5]) least[$5] = 100 * $6
        if (!($5 in most) || 100 * $6 > most[$5]) most[$5] = 100 * $6
        if (!(($2) in known)) { known[$2] = 1; count++ }
    }
    END {
        split("elastic alone no-same-view no-alpha untrained", order, " ")
        label["elastic"] = "cut out of one elastic run"; label["alone"] = "each size pre-trained alone"
        label["no-same-view"] = "elastic, no same-view terms"; label["no-alpha"] = "elastic, no alpha"
        label["untrained"] = "untrained weights"
        colour["elastic"] = "#0b62a8"; colour["alone"] = "#c8510a"; colour["no-same-view"] = "#7a3fa0"; colour["no-alpha"] = "#2e7d4f"
        colour["untrained"] = "#8a8f98"
        shape["elastic"] = "circle"; shape["alone"] = "square"; shape["no-same-view"] = "triangle"; shape["no-alpha"] = "diamond"
        shape["untrained"] = "circle"
        dash["elastic"] = "none"; dash["alone"] = "none"; dash["no-same-view"] = "7 4"; dash["no-alpha"] = "2 4"; dash["untrained"] = "1 5"
        metric[0] = "knn@20"; metric[1] = "linear"
        title[0] = "k-NN, k = 20"; title[1] = "Linear probe"
        print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 960 470\" width=\"960\" height=\"470\">"
        print "<style>text{font:15px system-ui,\"DejaVu Sans\",Arial,sans-serif;fill:#1f2430}.title{font-size:18px;font-weight:600;text-anchor:middle}" \
            ".tick{fill:#5a6070;font-size:14px;text-anchor:end}.size{text-anchor:middle;font-weight:600}.under{text-anchor:middle;fill:#5a6070;font-size:13px}" \
            ".note{fill:#5a6070;font-size:13px}.axis{text-anchor:middle;fill:#5a6070}</style>"
        print "<rect width=\"960\" height=\"470\" fill=\"#fff\"/>"
        top = 52; height = 268; inner = 380
        for (panel = 0; panel < 2; panel++) {
            m = metric[panel]
            left = panel ? 558 : 78
            step = most[m] - least[m] > 24 ? 5 : most[m] - least[m] > 9 ? 2 : 1
            floor = step * int(least[m] / step - 0.25); ceiling = step * int(most[m] / step + 1.25)
            text("title", left + inner / 2, 30, title[panel])
            for (v = floor; v <= ceiling + 1e-9; v += step) {
                printf "<path d=\"M%d %.1f h%d\" stroke=\"%s\"/>\n", left, high(v), inner, v == floor ? "#5a6070" : "#e3e6eb"
                text("tick", left - 9, high(v) + 5, v)
            }
            if (!panel) printf "<text class=\"axis\" transform=\"translate(24 %d) rotate(-90)\">top-1 on 10,000 test images, %%</text>\n", top + height / 2
            for (i = 0; i < sizes; i++) {
                p = parameters[i] >= 1000 ? sprintf("%d k parameters", parameters[i] / 1000 + 0.5) : parameters[i]
                x = name[i]; sub(/x/, " \303\227 ", x)
                text("size", at(i), top + height + 24, x); text("under", at(i), top + height + 43, p)
            }
            for (k = 5; k >= 1; k--) {
                s = order[k]; path = ""; shift = (k - 3) * 7
                for (i = 0; i < sizes; i++) {
                    v = mean(s, m, i)
                    if (v >= 0) path = path sprintf("%s%.1f %.1f ", path == "" ? "M" : "L", at(i) + shift, high(v))
                }
                if (path == "") continue
                printf "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2.2\" stroke-dasharray=\"%s\"/>\n", path, colour[s], dash[s]
                for (i = 0; i < sizes; i++) {
                    n = split(list[s, m, i], values, " ")
                    if (!n) continue
                    lo = hi = values[1]
                    for (j = 2; j <= n; j++) { if (values[j] < lo) lo = values[j]; if (values[j] > hi) hi = values[j] }
                    # A bar from the lowest to the highest seed, through the mean.
                    if (n > 1) printf "<path d=\"M%.1f %.1f V%.1f m-4 0 h8 M%.1f %.1f h8\" stroke=\"%s\" stroke-width=\"1.4\"/>\n",
                        at(i) + shift, high(lo), high(hi), at(i) + shift - 4, high(lo), colour[s]
                    mark(shape[s], at(i) + shift, high(mean(s, m, i)), colour[s], 0)
                }
            }
        }
        x = 78; y = 402
        for (k = 1; k <= 5; k++) {
            s = order[k]
            if (list[s, "knn@20", 0] == "" && list[s, "knn@20", sizes - 1] == "") continue
            printf "<path d=\"M%d %d h34\" stroke=\"%s\" stroke-width=\"2.2\" stroke-dasharray=\"%s\"/>\n", x, y, colour[s], dash[s]
            mark(shape[s], x + 17, y, colour[s], 0)
            text("legend", x + 42, y + 5, label[s])
            x += 290; if (k == 3) { x = 78; y += 26 }
        }
        text("note", 78, 456, count > 1 ? "Marks: mean of the seeds that were run; bars: lowest and highest seed. Axes do not start at 0." \
            : "One seed. Axes do not start at 0.")
        print "</svg>"
    }
' "$csv" >"$folder/figure.svg"
if command -v chromium >/dev/null; then
    chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=2 --window-size=960,470 \
        --screenshot="$folder/figure.png" "file://$(realpath "$folder/figure.svg")" >/dev/null 2>&1
else
    echo "no chromium: figure.png is as it was" >&2
fi
