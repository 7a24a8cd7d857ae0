# Lines "SAMPLE ADDRESS POLICY WORD..." of /proc/PID/numa_maps to "pages NODE LOCAL OTHER", of the sample with most pages.
# A policy is bind:1 or prefer:1; N0=12 says 12 pages on node 0.
$3 ~ /^(bind|prefer)[^:]*:[0-9]+$/ {
  wanted = $3
  sub(/.*:/, "", wanted)
  nodes[wanted] = 1
  for (i = 4; i <= NF; ++i) {
    if ($i !~ /^N[0-9]+=/) continue
    split(substr($i, 2), found, "=")
    if (found[1] == wanted) here[$1, wanted] += found[2]
    else elsewhere[$1, wanted] += found[2]
    total[$1] += found[2]
  }
}
END {
  for (sample in total) if (best == "" || total[sample] > total[best]) best = sample
  for (node in nodes) print "pages", node, here[best, node] + 0, elsewhere[best, node] + 0
}
