use super::*;

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("stubctl-sources-{name}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn a_growing_file_gives_whole_lines_once() {
    let directory = directory("grown");
    let file = directory.join("errors");
    let mut offset = 0;
    assert_eq!(grown(&file, &mut offset).unwrap(), "");
    fs::write(&file, "0x1000\n0x20").unwrap();
    assert_eq!(grown(&file, &mut offset).unwrap(), "0x1000\n");
    fs::write(&file, "0x1000\n0x2000 4\n").unwrap();
    assert_eq!(grown(&file, &mut offset).unwrap(), "0x2000 4\n");
    assert_eq!(grown(&file, &mut offset).unwrap(), "");
    fs::write(&file, "0x3000\n").unwrap();
    assert_eq!(grown(&file, &mut offset).unwrap(), "0x3000\n", "a file that was begun anew");
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn files_still_being_written_are_not_in_the_spool() {
    let directory = directory("spooled");
    for name in ["b", ".c", "a"] {
        fs::write(directory.join(name), "0x1000\n").unwrap();
    }
    let expected = vec![directory.join("a"), directory.join("b")];
    assert_eq!(spooled(&directory).unwrap(), (expected, false));
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_turn_takes_a_bounded_number_of_files_and_the_next_takes_the_others() {
    let directory = directory("many");
    for nr in 0..MAX_FILES + 5 {
        fs::write(directory.join(nr.to_string()), "0x1000\n").unwrap();
    }
    let mut ledger = Ledger::default();
    let mut nr_errors = 0;
    for (nr_files, has_more) in [(MAX_FILES, true), (5, false)] {
        let mut news = News::default();
        read_spool(&directory, &mut ledger, &mut news).unwrap();
        assert_eq!((news.spent.len(), news.has_more), (nr_files, has_more));
        nr_errors += news.pages[&Mfn::new(1)].0;
        news.spent.iter().for_each(|file| fs::remove_file(file).unwrap());
    }
    assert_eq!(nr_errors, MAX_FILES as u64 + 5);
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_spool_that_vanished_is_made_anew_and_one_that_cannot_be_is_an_error_only() {
    let directory = directory("vanished");
    let (mut ledger, mut news) = (Ledger::default(), News::default());
    read_spool(&directory.join("spool"), &mut ledger, &mut news).unwrap();
    assert!(directory.join("spool").is_dir());
    fs::write(directory.join("file"), "").unwrap();
    assert!(read_spool(&directory.join("file"), &mut ledger, &mut news).is_err());
    assert_eq!(news, News::default());
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn errors_of_one_page_add_up_and_lines_that_are_no_reports_are_left_out() {
    let mut news = News::default();
    news.read("0x1000 2\nnonsense\npage 0x1\n0x0\n", "a");
    news.read("0x1008 18446744073709551615\n", "b");
    assert_eq!(news.pages, BTreeMap::from([(Mfn::new(1), (u64::MAX, "b".to_owned()))]));
}

#[test]
fn a_command_that_fails_gives_nothing() {
    assert_eq!(output("echo 0x1000").unwrap(), "0x1000\n");
    assert!(output("echo 0x1000; exit 3").unwrap_err().to_string().contains("is not used"));
}
