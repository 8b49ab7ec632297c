-- The demo's `orders` table, made by arithmetic: the same rows on every machine, except for the date.
--
--   rows        200,000, or what the setting `demo.orders` says:
--                 select set_config('demo.orders', '5000000', false);
--   id          grows and has gaps, as after rollbacks and deletions
--   created_at  grows with id through the 30 days (UTC) before today, or before the setting `demo.until`, a date; a
--               quarter on whole seconds, a quarter on whole milliseconds, the rest on microseconds
--   addresses   three in a hundred are hostile: quotes, commas, line breaks, formulas, empty strings
--   total_cents two rows hold more than 2^53, which a float would round
--
-- Plain SQL without psql's commands: drivers can run it, and so can the `initdb` folder of the
-- Docker image. It fails if the table exists.

create table orders (
    id bigint primary key,
    customer_email text not null,
    total_cents bigint not null,
    status text not null,
    created_at timestamptz not null
);

insert into orders (id, customer_email, total_cents, status, created_at)
select
    n + n / 9 + n / 50000 * 1000,
    case n % 499
        when 6 then '"order ' || n || '"@example.org'
        when 7 then '"Lee, Sam ""the boss"" ' || n || '" <sam@example.com>'
        when 8 then 'sam,' || n || ',lee@example.com'
        when 9 then E'line\nbreak' || n || '@example.org'
        when 10 then E'carriage\r\nreturn' || n || '@example.org'
        when 11 then 'jürgen.weiß+' || n || '@example.com'
        when 12 then '🛒' || n || '👩🏽‍💻@example.org'
        when 13 then '=1+' || n || '@example.com'
        when 14 then E'back\\slash\\n' || n || '@example.com'
        when 15 then ' leading.space' || n || '@example.org'
        when 16 then 'trailing.space' || n || '@example.org '
        when 17 then ''
        when 18 then E'\\.'
        when 19 then E'"\n",\t' || n || '@example.com'
        when 20 then '山田.太郎' || n || '@example.org'
        else 'customer' || n * 7919 % 40009 || case n % 3 when 0 then '@example.org' else '@example.com' end
    end,
    case n
        when 13 then 9007199254740993  -- 2^53 + 1
        when 17 then 9223372036854775807  -- the largest bigint
        else 199 + n * 48271 % 99801
    end,
    case
        when n * 31 % 100 < 55 then 'delivered'
        when n * 31 % 100 < 75 then 'shipped'
        when n * 31 % 100 < 88 then 'paid'
        when n * 31 % 100 < 93 then 'pending'
        when n * 31 % 100 < 97 then 'cancelled'
        else 'refunded'
    end,
    begin
        + case n % 4
            when 0 then micros - micros % 1000000
            when 1 then micros - micros % 1000
            else micros
        end * interval '1 microsecond'
from (
    select n, begin, (n - 1) * (2591999999999 / total) + n * 7919 % 1000003 % greatest(2591999999999 / total, 1) as micros
    from (
        select coalesce(nullif(current_setting('demo.orders', true), ''), '200000')::bigint as total,
            (coalesce(nullif(current_setting('demo.until', true), '')::date, (now() at time zone 'UTC')::date)
                - 30)::timestamp at time zone 'UTC' as begin
    ) as asked,
        lateral generate_series(1, total) as n
) as numbered;

create index orders_created_at on orders (created_at);
analyze orders;
