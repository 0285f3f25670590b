/** Light or dark as chosen in Airflow, whose pages lie on the same site; else as the browser asks. */
const chosen = () => {
  const theme = localStorage.getItem('theme');
  document.documentElement.style.colorScheme = theme === 'light' || theme === 'dark' ? theme : 'light dark';
};
chosen();
addEventListener('storage', chosen);
