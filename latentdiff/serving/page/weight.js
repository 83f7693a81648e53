// Ctrl and an arrow key change the weight of the selected words by 0.1: (words:1.1).

export function changeWeight(area, change) {
  let { selectionStart: start, selectionEnd: end, value } = area;
  if (start === end) {
    while (start > 0 && /[^\s,()]/.test(value[start - 1])) start--;
    while (end < value.length && /[^\s,():]/.test(value[end])) end++;
  }
  while (end > start && value[end - 1] === " ") end--;
  if (start === end) return;
  const after = value.slice(end).match(/^:([\d.]+)\)/);
  const weighted = value[start - 1] === "(" && after;
  const weight = Math.round(((weighted ? Number(after[1]) : 1) + change) * 10) / 10;
  if (weight < 0) return;
  const words = value.slice(start, end);
  const from = weighted ? start - 1 : start;
  const to = weighted ? end + after[0].length : end;
  const changed = weight === 1 ? words : `(${words}:${weight})`;
  area.setRangeText(changed, from, to, "preserve");
  const first = weight === 1 ? from : from + 1;
  area.setSelectionRange(first, first + words.length);
  area.dispatchEvent(new Event("input", { bubbles: true }));
}
