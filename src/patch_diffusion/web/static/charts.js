// Values under the pointer take the place of the newest ones in the key of a chart, as in a report.

export function hover(place) {
  for (const chart of place.querySelectorAll('.chart')) {
    const data = JSON.parse(chart.querySelector('script').textContent);
    const [area, cursor, at] = ['.area', '.cursor', '.at'].map(name => chart.querySelector(name));
    const shown = [...chart.querySelectorAll('.key b')];
    const newest = shown.map(value => value.textContent);
    const nearer = (points, step) => points.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
    area.addEventListener('pointermove', event => {
      const box = area.getBoundingClientRect();
      const step = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1) * data.last;
      const found = data.curves.map(points => nearer(points, step));
      const there = nearer(found, step)[0];
      found.forEach((point, index) => { shown[index].textContent = point[1]; });
      at.textContent = `step ${Math.round(there).toLocaleString('en')}`;
      cursor.style.display = 'block';
      cursor.style.left = `${100 * there / data.last}%`;
    });
    area.addEventListener('pointerleave', () => {
      newest.forEach((value, index) => { shown[index].textContent = value; });
      at.textContent = '';
      cursor.style.display = 'none';
    });
  }
}
