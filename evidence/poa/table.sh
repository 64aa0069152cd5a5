#!/usr/bin/env bash
# The table of README.md from results.csv: mean over seeds and, in brackets, each seed, in percent.
set -euo pipefail
awk -F, '
    NR > 1 {
        run = $1 ~ /^alone-/ ? "alone" : $1
        if (!($3 in place)) { place[$3] = sizes; size[sizes++] = $3 }
        if (!(run in known)) { known[run] = 1; order[runs++] = run }
        key = run SUBSEP $5 SUBSEP $3
        all[key] = all[key] (all[key] == "" ? "" : ", ") sprintf("%.1f", 100 * $6)
        sum[key] += 100 * $6; n[key]++
    }
    END {
        head = "| |"; rule = "| --- |"
        for (m = 0; m < 2; m++) for (i = 0; i < sizes; i++) { head = head sprintf(" %s %s |", m ? "linear" : "k-NN", size[i]); rule = rule " --- |" }
        print head; print rule
        for (r = 0; r < runs; r++) {
            line = "| " order[r] " |"
            for (m = 0; m < 2; m++) for (i = 0; i < sizes; i++) {
                key = order[r] SUBSEP (m ? "linear" : "knn@20") SUBSEP size[i]
                line = line (n[key] == 0 ? " |" : n[key] == 1 ? " " all[key] " |" : sprintf(" %.1f (%s) |", sum[key] / n[key], all[key]))
            }
            print line
        }
    }
    BEGIN { sizes = 0; runs = 0 }
' "${1:-$(dirname "${BASH_SOURCE[0]}")/results.csv}"
