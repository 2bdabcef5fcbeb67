//! Random wishes, crashes and deadlines against a model of what a sandbox is.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::chance::Chance;
use crate::world::{World, assert_failed, text};

/// What is done next; to the sandbox of this index, where there is one.
#[derive(Clone, Debug)]
enum Wish {
    Create,
    Write(usize),
    Read(usize),
    Pause(usize),
    PauseDisk(usize),
    Resume(usize),
    Destroy(usize),
    TimeIsUp(usize),
    KillVmm(usize),
    KillAgent,
}

/// A sandbox as it should be.
#[derive(Clone, Debug)]
struct Model {
    id: String,
    state: &'static str,
    /// What is in its memory, and on its disk.
    memory: u32,
    disk: u32,
}

/// Most sandboxes at a time.
const SANDBOXES: usize = 2;

fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let one = prop_oneof![
        2 => Just(Wish::Create),
        3 => (0..SANDBOXES).prop_map(Wish::Write),
        2 => (0..SANDBOXES).prop_map(Wish::Read),
        3 => (0..SANDBOXES).prop_map(Wish::Pause),
        1 => (0..SANDBOXES).prop_map(Wish::PauseDisk),
        4 => (0..SANDBOXES).prop_map(Wish::Resume),
        1 => (0..SANDBOXES).prop_map(Wish::Destroy),
        1 => (0..SANDBOXES).prop_map(Wish::TimeIsUp),
        1 => (0..SANDBOXES).prop_map(Wish::KillVmm),
        1 => Just(Wish::KillAgent),
    ];
    prop::collection::vec(one, 20).prop_map(|wishes| [vec![Wish::Create], wishes].concat())
}

#[test]
fn root_random_wishes_at_any_moment_agree_with_the_model() {
    let chance = Chance::of_this_run();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&chance.seed().to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let cases = chance.soak_rounds().map_or(1, |rounds| rounds.min(20) as u32);
    // Real VMs are not shrunk: the seed repeats what was found.
    let config = Config { cases, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    runner
        .run(&wishes(), |wishes| {
            live(&wishes);
            Ok(())
        })
        .unwrap();
}

fn live(wishes: &[Wish]) {
    let world = World::new();
    let mut agent = world.agent(&[]);
    let mut sandboxes: Vec<Model> = Vec::new();
    for (step, wish) in wishes.iter().enumerate() {
        println!("{step}: {wish:?} in {sandboxes:?}");
        match wish {
            Wish::Create if sandboxes.len() < SANDBOXES => {
                let id = world.create(&["--memory", "128", "--on-timeout", "pause"]);
                sandboxes.push(Model { id, state: "running", memory: 0, disk: 0 });
            }
            Wish::Create => {}
            Wish::KillAgent => {
                agent.kill();
                agent = world.agent(&[]);
            }
            Wish::Destroy(index) if *index < sandboxes.len() => {
                world.sandbox(&["rm", &sandboxes.remove(*index).id]);
            }
            Wish::Write(index)
            | Wish::Read(index)
            | Wish::Pause(index)
            | Wish::PauseDisk(index)
            | Wish::Resume(index)
            | Wish::Destroy(index)
            | Wish::TimeIsUp(index)
            | Wish::KillVmm(index) => {
                if let Some(model) = sandboxes.get_mut(*index) {
                    apply(&world, wish, model, step as u32 + 1);
                }
            }
        }
        for model in &sandboxes {
            assert_eq!(world.state(&model.id), model.state, "after {step}: {}", world.agent_words());
        }
    }
    for model in sandboxes {
        world.sandbox(&["rm", &model.id]);
    }
    agent.stop();
    world.finish_agent();
}

fn apply(world: &World, wish: &Wish, model: &mut Model, value: u32) {
    let id = model.id.clone();
    match (wish, model.state) {
        (Wish::Write(_), "running") => {
            world.sh(&id, &format!("echo {value} > /dev/shm/value; echo {value} > /root/value; sync"));
            (model.memory, model.disk) = (value, value);
        }
        (Wish::Read(_), "running") => {
            let found =
                world.sh(&id, "cat /dev/shm/value 2>/dev/null || echo 0; cat /root/value 2>/dev/null || echo 0");
            assert_eq!(found, format!("{}\n{}\n", model.memory, model.disk));
        }
        (Wish::Write(_) | Wish::Read(_), state) => assert_failed(&world.exec(&id, "true"), &[state]),
        (Wish::Pause(_), "running") => {
            world.sandbox(&["pause", &id]);
            model.state = "paused";
        }
        (Wish::PauseDisk(_), "running") => {
            world.sandbox(&["pause", "--disk-only", &id]);
            (model.state, model.memory) = ("paused", 0);
        }
        (Wish::Pause(_) | Wish::PauseDisk(_), _) => {
            assert_failed(&world.output(&["sandbox", "pause", &id]), &["nothing to pause"])
        }
        (Wish::Resume(_), "paused" | "stopped") => {
            // Its time is counted anew, and may have been short.
            world.sandbox(&["resume", "--timeout", "1h", &id]);
            model.state = "running";
        }
        (Wish::Resume(_), _) => assert_failed(&world.output(&["sandbox", "resume", &id]), &["nothing to resume"]),
        (Wish::TimeIsUp(_), "running") => {
            world.sandbox(&["timeout", &id, "100ms"]);
            world.await_state(&id, "paused");
            model.state = "paused";
        }
        (Wish::KillVmm(_), "running") => {
            let stat = world.sandbox(&["stat", &id]);
            crate::world::signal(stat["vmm_pid"].as_u64().unwrap() as u32, "KILL");
            world.await_state(&id, "stopped");
            (model.state, model.memory) = ("stopped", 0);
        }
        (Wish::TimeIsUp(_), _) => {
            let refused = world.output(&["sandbox", "timeout", &id, "100ms"]);
            assert!(!refused.status.success(), "{}", text(&refused.stdout));
        }
        (Wish::KillVmm(_) | Wish::Create | Wish::KillAgent | Wish::Destroy(_), _) => {}
    }
}
