import t from 'tap';
import { parseCron } from './cron.ts';

const sorted = (numbers: ReadonlySet<number>): readonly number[] => [...numbers].toSorted((a, b) => a - b);

void t.test('lists, ranges, steps and names mean the numbers that crontab(5) says', (t) => {
  const cron = parseCron('0,30,10-12 */6,1 1-10/3 JAN,mar-May mon-wed,7');
  t.same(sorted(cron.minutes), [0, 10, 11, 12, 30]);
  t.same(sorted(cron.hours), [0, 1, 6, 12, 18]);
  t.same(sorted(cron.daysOfMonth), [1, 4, 7, 10]);
  t.same(sorted(cron.months), [1, 3, 4, 5]);
  t.same(sorted(cron.daysOfWeek), [0, 1, 2, 3]);
  t.equal(cron.eitherDay, true);
  t.same(sorted(parseCron('0 0 * * fri-sun').daysOfWeek), [0, 5, 6]);
  t.same(sorted(parseCron('0 0 * * */2').daysOfWeek), [0, 2, 4, 6]);
  t.same(sorted(parseCron('0 0 * * 5-7').daysOfWeek), [0, 5, 6]);
  t.equal(parseCron('0 0 */2 * mon').eitherDay, false);
  t.equal(parseCron('  0  2\t* * * ').hours.has(2), true);
  t.end();
});

void t.test('nicknames are the lines that they stand for', (t) => {
  for (const [nickname, line] of [
    ['@hourly', '0 * * * *'],
    ['@daily', '0 0 * * *'],
    ['@midnight', '0 0 * * *'],
    ['@weekly', '0 0 * * 0'],
    ['@monthly', '0 0 1 * *'],
    ['@yearly', '0 0 1 1 *'],
    ['@annually', '0 0 1 1 *'],
  ] as const)
    t.same({ ...parseCron(nickname), text: '' }, { ...parseCron(line), text: '' }, nickname);
  t.end();
});

void t.test('a line that is none is refused with its field, and with what is allowed there', (t) => {
  const cases: readonly (readonly [string, RegExp])[] = [
    ['often', /five fields of cron \(minute, hour.*there is one$/],
    ['0 2 * *', /five fields.*there are 4$/],
    ['0 0 2 * * *', /five fields.*there are 6$/],
    ['', /five fields/],
    ['@reboot', /"@reboot" is none of @yearly, .*@hourly/],
    ['60 * * * *', /^minute "60": "60" is not allowed \(allowed: 0 to 59; lists 1,2, ranges/],
    ['* 24 * * *', /^hour "24".*allowed: 0 to 23/],
    ['* * 0 * *', /^day of the month "0".*1 to 31/],
    ['* * * 13 *', /^month "13".*1 to 12, jan to dec/],
    ['* * * * 8', /^day of the week "8".*0 to 7, sun to sat/],
    ['* * * * mo', /^day of the week "mo": "mo" is not allowed/],
    ['*/0 * * * *', /^minute "\*\/0": expected a step from 1 to 59/],
    ['*/x * * * *', /expected a step/],
    ['*/ * * * *', /expected a step/],
    ['*/5/2 * * * *', /expected a step/],
    ['5/15 * * * *', /a step needs a range to go through, such as 5-59\/15/],
    ['30-10 * * * *', /30 is after 10; write two ranges/],
    ['0 0 * * sat-mon', /sat is after mon; write two ranges/],
    ['1-2-3 * * * *', /expected a range such as 1-5/],
    ['1, * * * *', /^minute "": "" is not allowed/],
    ['-1 * * * *', /"" is not allowed/],
    ['0 0 L * *', /"L" is not allowed/],
    ['0 0 ? * *', /"\?" is not allowed/],
    ['0 0 * * 5#3', /"5#3" is not allowed/],
    ['0 0 30 2 *', /no such day: 30 is in none of the months 2/],
    ['0 0 31 4,jun *', /no such day/],
  ];
  for (const [line, message] of cases) {
    t.throws(() => parseCron(line), { name: 'RangeError', message }, line);
  }
  t.ok(parseCron('0 0 30 2 mon'), 'or each Monday of February');
  t.ok(parseCron('0 0 29 2 *'));
  t.end();
});
