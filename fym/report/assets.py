"""The page's style sheet and script. Both are inlined: a report is one file that needs no network."""

STYLE = """
:root { color-scheme: light dark; --page: #fbfaf7; --card: #ffffff; --ink: #20262e; --soft: #5d6773;
  --line: #e3e0d8;
  --spatial: #3f7fbf; --temporal: #c9651b; --code: #f2f0ea; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1b1f25; --ink: #e7e9ec; --soft:
  #9aa4b0;
  --line: #2d333b; --spatial: #74a9de; --temporal: #ee9a58; --code: #21262d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system,
  "Segoe UI",
  Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1216px; margin: 0 auto; padding: 28px 24px 56px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; font-weight: 650; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 40px 0 12px; font-weight: 650; }
h3 { font-size: 15px; margin: 0 0 8px; font-weight: 600; }
p { margin: 0 0 10px; max-width: 78ch; }
.soft, figcaption, .note { color: var(--soft); }
.note { font-size: 13.5px; margin-top: 10px; }
.missing { color: var(--soft); border: 1px dashed var(--line); border-radius: 8px; padding: 10px 14px;
  margin: 0; }
.warning { border-left: 3px solid var(--temporal); padding: 4px 12px; margin: 10px 0; }
main > header { margin-bottom: 48px; }
main > header h1 { margin-bottom: 16px; }
a { color: inherit; }
.run + .run { margin-top: 64px; padding-top: 36px; border-top: 1px solid var(--line); }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 16px;
  min-width: 150px; }
.tile b { display: block; font-size: 22px; font-weight: 620; font-variant-numeric: tabular-nums;
  line-height: 1.3; }
.tile span { font-size: 13px; color: var(--soft); }
.player { display: flex; align-items: center; gap: 12px; margin: 0 0 14px; }
.player button { font: inherit; font-size: 14px; color: var(--ink); background: var(--card); cursor: pointer;
  border: 1px solid var(--line); border-radius: 8px; padding: 4px 14px; min-width: 76px; }
.player input { flex: 0 1 340px; accent-color: var(--temporal); }
.player output { font-size: 13px; color: var(--soft); font-variant-numeric: tabular-nums; }
.clips { display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; }
.group { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px;
  max-width: 100%; }
.group > header { width: 0; min-width: 100%; margin-bottom: 10px; min-height: 3em; line-height: 1.45; }
.group > header b { font-weight: 600; }
.pair { display: flex; gap: 12px; flex-wrap: wrap; }
figure { margin: 0; }
.clip video { display: block; width: 100%; height: auto; border-radius: 5px; background: #0002; }
.clip video + video { margin-top: 6px; }
.clip video.tiny { image-rendering: pixelated; }
figcaption { font-size: 13px; line-height: 1.4; margin-top: 7px; }
figcaption b { color: var(--ink); font-weight: 600; }
figcaption .tuned { color: var(--temporal); }
.columns { display: grid; grid-template-columns: minmax(0, auto) minmax(300px, 1fr); gap: 32px;
  align-items: center; }
@media (max-width: 800px) { .columns { grid-template-columns: 1fr; } }
.plot svg { display: block; max-width: 100%; height: auto; }
.plot svg text { font-family: inherit !important; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
.wide { overflow-x: auto; }
th, td { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); vertical-align:
  top; }
th { font-weight: 600; color: var(--soft); font-size: 13px; }
td.number, th.number { text-align: right; }
tr.control td { color: var(--soft); }
pre { background: var(--code); border-radius: 8px; padding: 12px 16px; overflow-x: auto; font-size: 13px;
  line-height: 1.5; margin: 0 0 12px; }
code { font-family: ui-monospace, "SF Mono", "DejaVu Sans Mono", Consolas, monospace; }
details summary { cursor: pointer; color: var(--soft); margin-bottom: 10px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 20px; margin: 0; font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""

# All clips of a run are held at the first one's frame, so that they can be compared; their rates may differ.
SCRIPT = """
for (const run of document.querySelectorAll('.run')) {
  const videos = [...run.querySelectorAll('video')], player = run.querySelector('.player');
  if (!videos.length || !player) continue;
  player.hidden = false;
  const lead = videos[0], button = player.querySelector('button'), slider = player.querySelector('input');
  const output = player.querySelector('output'), fps = Number(player.dataset.fps);
  const last = Number(player.dataset.frames) - 1;
  const frame = () => Math.min(last, Math.floor(lead.currentTime * fps + 1e-3));
  const stretch = (v) => fps / Number(v.dataset.fps);
  const due = (v, time) => Math.min(time * stretch(v), v.duration || time);
  const place = (time) => videos.forEach((v) => { v.currentTime = due(v, time); });
  let playing = !matchMedia('(prefers-reduced-motion: reduce)').matches, before = 0;
  const apply = () => {
    button.textContent = playing ? 'Pause' : 'Play';
    videos.forEach((v) => playing ? v.play().catch(() => {}) : v.pause());
  };
  button.addEventListener('click', () => { playing = !playing; place(lead.currentTime); apply(); });
  slider.max = last;
  slider.addEventListener('input', () => {
    if (playing) { playing = false; apply(); }
    place((Number(slider.value) + 0.5) / fps);
  });
  setInterval(() => {
    const now = lead.currentTime;
    if (playing) {
      if (now < before) place(0);
      for (const v of videos) {
        const late = Math.abs(v.currentTime - due(v, now)) * Number(v.dataset.fps);
        if (v.readyState > 1 && late > 1.5 && frame() < last - 1) v.currentTime = due(v, now);
      }
      slider.value = frame();
    }
    before = now;
    output.textContent = 'frame ' + frame() + ' of ' + last;
  }, 120);
  videos.forEach((v) => { v.defaultPlaybackRate = v.playbackRate = stretch(v); });
  apply();
}
"""
