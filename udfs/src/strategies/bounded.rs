//! `bounded`: a counter that never falls below its bound.

use crate::aggregate::{Call, State, Strategy, argument, encode};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::lattice::origins::{self, Origins, origin};
use crate::sketch::{differ, number};
use crate::types::Type;
use crate::value::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Bounded>().with_functions(functions));
}

#[derive(Debug)]
struct Bounded {
    bound: i64,
}

/// What an origin did: each number only grows.
#[derive(Debug, Clone, PartialEq, Default)]
struct Account {
    added: u64,
    used: u64,
    /// What it gave to each other origin.
    given: Origins<u64>,
}

impl Account {
    fn raise(&mut self, other: &Account) {
        self.added = self.added.max(other.added);
        self.used = self.used.max(other.used);
        other.given.iter().for_each(|(to, n)| self.given.say(&to, |known| *known = *n.max(known), || *n));
    }
}

/// The accounts of all origins.
#[derive(Debug, Clone, PartialEq)]
struct Accounts {
    bound: i64,
    origins: Origins<Account>,
}

fn overflow() -> Error {
    Error::invalid_argument("the counter does not fit into 64 bits")
}

impl Accounts {
    fn account(&mut self, who: &Value, change: impl FnOnce(&mut Account) -> Result<()>) -> Result<()> {
        let mut account = self.origins.get(who).cloned().unwrap_or_default();
        change(&mut account)?;
        self.origins.say(who, |known| known.raise(&account), || account.clone());
        Ok(())
    }

    /// How much an origin may take away without asking anybody.
    fn rights(&self, who: &Value) -> i128 {
        let got: i128 = self.origins.values().filter_map(|account| account.given.get(who)).map(|n| i128::from(*n)).sum();
        let own = self.origins.get(who).map_or(0, |account| {
            let given: i128 = account.given.values().map(|n| i128::from(*n)).sum();
            i128::from(account.added) - i128::from(account.used) - given
        });
        own + got
    }

    fn take(&self, who: &Value, n: u64) -> Result<()> {
        let rights = self.rights(who);
        if i128::from(n) > rights {
            let message = format!("`{who}` may take {rights} at most, not {n}: more could bring the counter below {}", self.bound);
            return Err(Error::invalid_argument(message).with_help("add to it first, or let another origin give rights with bounded_give"));
        }
        Ok(())
    }
}

impl Strategy for Bounded {
    const SPEC: Spec = Spec {
        name: "bounded",
        aliases: &["bounded_counter"],
        type_id: 46,
        since: "0.1.0",
        title: "a counter that never falls below its bound, though nobody is asked",
        doc: "Whoever adds to it gets the right to take as much away again, and can give rights to another origin; nobody takes more than their rights. So \
              the counter stays at its bound or above without any coordination: stock, seats, budgets. `bounded_add(state, origin, n)` adds, or takes away \
              where `n` is negative; beyond the rights that is an error. `bounded_give(state, from, to, n)` moves rights, `bounded_rights(state, origin)` \
              says how many there are. A row is (added, used, origin): the running totals of an origin, of each the greatest counts. Rows are \
              taken at their word: whoever writes them has kept to the rights.",
        inputs: &[Input::Increments, Input::Decrements, Input::Origin],
        args: &[
            Arg { name: "increments", kind: ArgKind::Column(Input::Increments, true), doc: "each origin's total of what it added" },
            Arg { name: "decrements", kind: ArgKind::Column(Input::Decrements, true), doc: "each origin's total of what it took away" },
            super::r#counter::ORIGIN,
            Arg { name: "bound", kind: ArgKind::Number, doc: "what it never falls below; default 0" },
        ],
        takes: "integers that are not negative",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_value_bigint(s) AS stock, bounded_rights(s, 'berlin') AS berlin FROM (SELECT bounded_add(bounded_give(bounded_add(NULL, 'paris', 10), 'paris', 'berlin', 4), 'berlin', -3) AS s) AS sold",
            "7 | 1",
        ),
        source: "O'Neil 1986, The escrow transactional method; Balegas et al. 2015, Extending eventually consistent cloud databases for enforcing numeric invariants",
        samples: || vec![Call::new(vec![Type::INT64, Type::INT64, Type::Text])],
    };
    type State = Accounts;

    fn configure(call: &Call) -> Result<Self> {
        let numbers = call.inputs.len() == 3 && call.inputs[..2].iter().all(|ty| matches!(ty, Type::Int { .. } | Type::Null));
        if !numbers {
            return Err(Error::type_mismatch("`bounded` takes two totals, which are integers, and their origin"));
        }
        Ok(Bounded { bound: number(call, "bound", 0, i64::MIN..=i64::MAX)? })
    }

    fn result_type(&self) -> Type {
        Type::INT64
    }

    fn empty(&self) -> Accounts {
        Accounts { bound: self.bound, origins: Origins::default() }
    }

    /// Of no rows nothing is known.
    fn resolve(&self, state: &Accounts) -> Result<Value> {
        if state.origins.is_empty() { Ok(Value::Null) } else { state.value() }
    }

    fn update(&self, state: &mut Accounts, row: &[Value]) -> Result<()> {
        if row[0].is_null() && row[1].is_null() {
            return Ok(());
        }
        let total = |value: &Value| match value {
            Value::Null => Ok(0),
            Value::Int(n) => u64::try_from(*n).map_err(|_| Error::invalid_argument(format!("a total that only grows cannot be {n}"))),
            other => Err(Error::type_mismatch(format!("a {} cannot be counted: {other}", other.kind()))),
        };
        let (added, used) = (total(&row[0])?, total(&row[1])?);
        state.account(origin(&row[2])?, |account| {
            account.raise(&Account { added, used, given: Origins::default() });
            Ok(())
        })
    }
}

impl State for Accounts {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.bound != other.bound {
            return Err(differ("counter", "bound", self.bound, other.bound));
        }
        other.origins.iter().for_each(|(who, account)| self.origins.say(&who, |known| known.raise(account), || account.clone()));
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        let sum: i128 = self.origins.values().map(|account| i128::from(account.added) - i128::from(account.used)).sum();
        i64::try_from(i128::from(self.bound) + sum).map(|v| Value::Int(v.into())).map_err(|_| overflow())
    }

    fn bottom(&self) -> Self {
        Accounts { bound: self.bound, origins: Origins::default() }
    }

    /// Only the origins that did more.
    fn delta(&self, since: &Self) -> Self {
        Accounts { bound: self.bound, origins: self.origins.news(&since.origins) }
    }

    fn encode(&self, w: &mut Writer) {
        w.signed(self.bound.into());
        origins::encode(&self.origins, w, |account, w| {
            w.varint(account.added.into());
            w.varint(account.used.into());
            origins::encode(&account.given, w, |n, w| w.varint((*n).into()));
        });
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let long = |r: &mut Reader<'_>| u64::try_from(r.varint()?).map_err(|_| Error::corrupt_state("a total of the state is too great"));
        let bound = i64::try_from(r.signed()?).map_err(|_| Error::corrupt_state("the bound of the state is out of range"))?;
        let account = |r: &mut Reader<'_>| Ok(Account { added: long(r)?, used: long(r)?, given: origins::decode(r, long)? });
        Ok(Accounts { bound, origins: origins::decode(r, account)? })
    }

    fn heap_size(&self) -> usize {
        origins::heap_size(&self.origins, |account| origins::heap_size(&account.given, |_| 0))
    }

    fn info(&self) -> Value {
        let n = |n: u64| Value::Int(n.into());
        // What each was given, in one pass: of many origins each may have given to any.
        let mut rights: BTreeMap<Value, i128> = BTreeMap::new();
        for (who, account) in self.origins.iter() {
            let mut own = i128::from(account.added) - i128::from(account.used);
            for (to, n) in account.given.iter() {
                own -= i128::from(*n);
                *rights.entry(to.into_owned()).or_default() += i128::from(*n);
            }
            *rights.entry(who.into_owned()).or_default() += own;
        }
        let account = |(who, account): (Cow<'_, Value>, &Account)| {
            let given = Value::map(account.given.iter().map(|(to, given)| (to.into_owned(), n(*given))).collect());
            let fields = vec![
                ("added".into(), n(account.added)),
                ("used".into(), n(account.used)),
                ("given".into(), given),
                ("rights".into(), Value::Int(rights.get(&who).copied().unwrap_or(0))),
            ];
            (who.into_owned(), Value::record(fields))
        };
        Value::record(vec![
            ("bound".into(), Value::Int(self.bound.into())),
            ("origins".into(), Value::map(self.origins.iter().map(account).collect())),
        ])
    }
}

fn known(state: &Value) -> Result<Accounts> {
    Ok(argument::<Bounded>(state)?.unwrap_or(Accounts { bound: 0, origins: Origins::default() }))
}

fn bytes(accounts: &Accounts) -> Value {
    Value::Bytes(encode::<Bounded>(accounts).into())
}

fn whole(value: &Value) -> Result<i64> {
    match value.to_worth() {
        Value::Int(n) => i64::try_from(n).map_err(|_| overflow()),
        _ => Err(Error::type_mismatch(format!("a counter is changed by whole numbers, not by {value}"))),
    }
}

fn functions() -> Vec<Function> {
    vec![
        Function::state("bounded_new", "an empty counter that never falls below a bound", 1, |a| {
            Ok(bytes(&Accounts { bound: whole(&a[0])?, origins: Origins::default() }))
        }),
        Function::state("bounded_add", "the counter after an origin added this much, or took it away; beyond its rights that is an error", 3, |a| {
            let (mut accounts, who, n) = (known(&a[0])?, origin(&a[1])?, whole(&a[2])?);
            let size = n.unsigned_abs();
            if n < 0 {
                accounts.take(who, size)?;
            }
            accounts.account(who, |account| {
                let total = if n < 0 { &mut account.used } else { &mut account.added };
                *total = total.checked_add(size).ok_or_else(overflow)?;
                Ok(())
            })?;
            accounts.value()?;
            Ok(bytes(&accounts))
        }),
        Function::state("bounded_give", "the counter after an origin gave another the right to take this much away", 4, |a| {
            let (mut accounts, from, to, n) = (known(&a[0])?, origin(&a[1])?, origin(&a[2])?, whole(&a[3])?);
            let n = u64::try_from(n).map_err(|_| Error::invalid_argument(format!("{n} rights cannot be given")))?;
            accounts.take(from, n)?;
            if from != to && n > 0 {
                accounts.account(from, |account| {
                    let given = account.given.get(to).copied().unwrap_or(0).checked_add(n).ok_or_else(overflow)?;
                    account.given.say(to, |known| *known = given, || given);
                    Ok(())
                })?;
            }
            Ok(bytes(&accounts))
        }),
        Function::of("bounded_rights", "how much an origin may take away from a bounded counter", 2..=2, Type::INT64, |a| match &a[0] {
            Value::Null => Ok(Value::Null),
            state => Ok(Value::Int(known(state)?.rights(origin(&a[1])?))),
        }),
    ]
}
